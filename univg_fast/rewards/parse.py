"""What a completion says: is its form right, and which boxes does it answer with?

The rules, by mode and style, are those of `univg_kernels.scan_boxes`, which reads a batch; all take time linear in the
text. For one text at a time: `parse`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from univg_kernels.scan_boxes import MODES, STYLES, ScannedBoxes, scan_boxes

from univg_fast.structs import Box, Target

__all__ = ["MODES", "STYLES", "Answer", "parse", "parse_all", "scan_boxes"]


@dataclass(frozen=True)
class Answer:
    """`boxes` as the text gives them, inverted or beyond 1000 as they may be; numbers that are no integers stay so.

    `format`: UniVG-R1's form. `strict`: the strict form of the style. `tags`: of the four, those that stand once and
    in order. `count`: boxes in the text, where that is more than are kept (512).
    """

    boxes: tuple[Target, ...]
    format: bool
    strict: bool
    tags: int
    count: int


def parse(text: str, style: str = "univg_r1", mode: str = "strict", cot: bool = True) -> Answer:
    """One completion; the modes are told in `univg_kernels.scan_boxes`. ValueError for another mode or style."""
    return parse_all([text], style, mode, cot)[0]


def parse_all(
    texts: Sequence[str],
    styles: str | Sequence[str] = "univg_r1",
    mode: str = "strict",
    cot: bool | Sequence[bool] = True,
) -> list[Answer]:
    """The same of many, `styles` and `cot` of each or of all."""
    return answers_of(scan_boxes(texts, mode=mode, styles=styles, cot=cot))


def answers_of(found: ScannedBoxes) -> list[Answer]:
    numbers, images = found.boxes.tolist(), found.images.tolist()
    targets = [
        Target(as_box(four), image if image >= 0 else None, label if label is None else unescaped(label))
        for four, image, label in zip(numbers, images, found.labels, strict=True)
    ]
    ends = found.offsets.tolist()
    facts = (found.format.tolist(), found.strict.tolist(), found.tags.tolist(), found.counts.tolist())
    spans = zip(ends, ends[1:], *facts, strict=False)
    return [Answer(tuple(targets[begin:end]), *rest) for begin, end, *rest in spans]


def unescaped(label: str) -> str:
    """A label as it stands in JSON, without its escapes; as it is, where they are none."""
    if "\\" not in label:
        return label
    try:
        return str(json.loads(f'"{label}"', strict=False))
    except json.JSONDecodeError:
        return label


def as_box(numbers: Sequence[float]) -> Box:
    x1, y1, x2, y2 = (int(x) if x == int(x) else x for x in numbers)
    return x1, y1, x2, y2  # type: ignore[return-value]
