"""What every format is read into: one entry in the file's own words and numbers, so that it can be written back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from univg_fast.data.errors import Refused

MARK = "<image>"
TOLD = ("target_image", "target_label")
LARGEST = 10**15  # beyond it an int of JSON need not fit a float


@dataclass(frozen=True)
class RawTarget:
    """A box in the file's numbers; `image` is the 0-based index of its image, where the file says."""

    box: tuple[float, ...]
    image: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class RawRecord:
    """An entry before anything is resolved, converted or taken off.

    `question` has its `<image>` marks and instruction, `response` its white space. `placed` are the boxes and `refs`
    the names for which `<bbox>` and `<ref-object>` stand in question and response, in reading order. `extra` holds the
    keys of no meaning to us; `shape` what the format needs to write its own spelling again.
    """

    format: str
    images: tuple[str, ...]
    question: str
    targets: tuple[RawTarget, ...] = ()
    coordinates: str = "norm1000"
    response: str | None = None
    uid: Any = None
    task: Any = None
    cot: bool | None = None
    answer_style: str | None = None
    turn: int = 0  # of a conversation with several answers; each is a record of its own
    turns: int = 1
    placed: tuple[RawTarget, ...] = ()
    refs: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)


def text_of(row: dict[str, Any], key: str) -> str:
    """A text under `key`; Refused where it is missing or something else."""
    if not isinstance(need(row, key), str):
        raise Refused("schema", f"{key}: expected a text, got {brief(row[key])}")
    return row[key]


def need(row: dict[str, Any], key: str) -> Any:
    if key not in row:
        raise Refused("schema", f"expected the key {key}, got the keys {', '.join(map(str, row))}"[:300])
    return row[key]


def images_key_of(row: dict[str, Any]) -> str:
    """The key that holds the paths."""
    return "image" if "image" in row and "images" not in row else "images"


def images_of(row: dict[str, Any], *keys: str) -> tuple[str, ...]:
    """The paths under the first of `keys` that is there: a list, or one path."""
    images = next((row[key] for key in keys if key in row), None)
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(image, str) and image for image in images):
        raise Refused("schema", f"{keys[0]}: expected a list of paths with at least one, got {brief(images)}")
    return tuple(images)


def check_marks(texts: Sequence[str], images: Sequence[str], optional: bool = False) -> None:
    """Refused unless there is one `<image>` for each image (`optional`: or none at all)."""
    marks = sum(text.count(MARK) for text in texts)
    if marks != len(images) and not (optional and not marks):
        raise Refused("count", f"expected {len(images)} {MARK} marks, one for each image, got {marks}")


def numbers_of(value: Any, name: str) -> tuple[float, ...]:
    """Four numbers; Refused otherwise. Whether they make a box is decided where their system is known."""
    if not isinstance(value, (list, tuple)) or len(value) != 4 or not all(is_number(v) for v in value):
        raise Refused("box", f"{name}: expected [x1, y1, x2, y2], got {brief(value)}")
    if any(isinstance(v, int) and abs(v) > LARGEST for v in value):
        raise Refused("box", f"{name}: expected numbers of a picture, got {brief(value)}")
    return tuple(value)


def target_image(value: Any, number: int, name: str = "target_image") -> int | None:
    """An index from 0, or None; Refused for anything else."""
    if value is not None and not (is_int(value) and 0 <= value < number):
        raise Refused("schema", f"{name}: expected an index from 0 to {number - 1}, got {brief(value)}")
    return value


def told_of_target(row: dict[str, Any], num_images: int) -> dict[str, Any]:
    """Image and label of the first box, under keys of ours beside the format's: `target_image` and `target_label`."""
    label = row.get("target_label")
    if label is not None and not isinstance(label, str):
        raise Refused("schema", f"target_label: expected a text, got {brief(label)}")
    told = {"target_image": target_image(row.get("target_image"), num_images), "target_label": label}
    return {key: value for key, value in told.items() if value is not None}


def with_told(targets: tuple[RawTarget, ...], told: dict[str, Any]) -> tuple[RawTarget, ...]:
    """Targets of which the first has the image and the label that were told."""
    if not targets or not told:
        return targets
    box, image, label = targets[0].box, targets[0].image, targets[0].label
    return RawTarget(box, told.get("target_image", image), told.get("target_label", label)), *targets[1:]


def told_by(record: RawRecord, same: bool) -> dict[str, Any]:
    """Those keys again: the row's own if it comes from this format, else what its one box says of itself."""
    if same or len(record.targets) != 1:
        return {key: record.shape[key] for key in TOLD if key in record.shape}
    (target,) = record.targets
    return {"target_image": target.image, "target_label": target.label}


def task_key(row: dict[str, Any]) -> str:
    """The key that names the task."""
    return "type" if "task" not in row else "task"


def cot_of(row: dict[str, Any]) -> bool | None:
    if not isinstance(row.get("cot"), (bool, type(None))):
        raise Refused("schema", f"cot: expected true or false, got {brief(row['cot'])}")
    return row.get("cot")


def rest(row: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """What a reader that knows these keys has no use for; a null under a known key is kept for the way back."""
    return {key: value for key, value in row.items() if key not in known or value is None}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def brief(value: Any) -> str:
    """A value in at most 80 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 80 else text[:77] + "..."
