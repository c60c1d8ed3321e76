"""How a box is read from an answer, by name. What a benchmark's own script does, bugs included, is done by its name.

answer_tag           ours: the last box inside the last closed <answer>…</answer>, in any spelling of `lenient`
univg_r1             UniVG-R1's MIG-Bench script: six patterns in turn; of several boxes the last is dropped and the
                     first taken, so also one inside <think>; fractions become zeros
migician             Migician's script: the same patterns, the first box; a number of 1 or more is a thousandth
univg_r1_zero_shot   UniVG-R1's zero-shot scripts: the first pair of corners of prompt and completion together
lmms_eval            lmms-eval's RefCOCO tasks: the first [a, b, c, d] as fractions, else zeros

Numbers are read in full: whatever is computed from them, is computed from what the text says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from univg_kernels.scan_boxes.search import LEGACY

from univg_fast.data.boxtext import NUMBER, boxes_in, last_image

Box = tuple[float, float, float, float]
ZEROS: Box = (0.0, 0.0, 0.0, 0.0)
OPEN, CLOSE = "<answer>", "</answer>"
N = r"(-?+\d++(?:\.\d++)?+)"
FOUR = re.compile(rf"\[\s*+{N},\s*+{N},\s*+{N},\s*+{N}\s*+\]")
PAIR = re.compile(r"\(\s*+(\d++)\s*+,\s*+(\d++)\s*+\)\s*+,\s*+\(\s*+(\d++)\s*+,\s*+(\d++)\s*+\)")


class Read(NamedTuple):
    """Boxes as written, each with the 0-based image that the answer names for it; the one that is scored is last."""

    boxes: list[Box]
    images: list[int | None]


NOTHING = Read([], [])


class Parser(NamedTuple):
    """`read(answer, question, images, cot)`. `unit` of its numbers: thousandths, fractions, or mixed (Migician's).
    `absent`: the box of an answer that has none."""

    read: Callable[[str, str, int, bool], Read]
    unit: str = "thousandths"
    absent: Box | None = None

    def scaled(self, box: Box, unit: str) -> Box:
        """A box as written in `unit`, thousandths or fractions; numbers that are in it already stay as they are."""
        return tuple(self._scaled(value, unit) for value in box)  # type: ignore[return-value]

    def _scaled(self, value: float, unit: str) -> float:
        given = self.unit if self.unit != "mixed" else "thousandths" if value >= 1 else "fractions"
        if given == unit:
            return value
        try:
            return value / 1000 if unit == "fractions" else value * 1000
        except OverflowError:  # an integer that no float holds
            return float("inf")


def answer_tag(answer: str, question: str, images: int, cot: bool) -> Read:
    """Without `cot` an answer that has no tags is read as a whole."""
    body: str | None = None
    end = answer.rfind(CLOSE)
    start = answer.rfind(OPEN, 0, end) if end >= 0 else -1
    if start >= 0:
        body = answer[start + len(OPEN) : end]
    elif not cot and OPEN not in answer and CLOSE not in answer:
        body = answer
    if body is None:
        return NOTHING
    found = boxes_in(body, images)
    return Read(
        [_four([_number(n) for n in NUMBER.findall(body, box.start, box.end)]) for box in found],
        [box.image for box in found],
    )


def univg_r1(answer: str, question: str, images: int, cot: bool) -> Read:
    for pattern in LEGACY:
        matches = pattern.findall(answer)
        if matches:
            break
    else:
        return NOTHING
    kept = matches[:1] if len(matches) == 1 else matches[:-1]
    try:  # one number that int() refuses spoils all boxes
        return _only([_four([int(text) for text in match]) for match in kept][0])
    except ValueError:
        return NOTHING


def migician(answer: str, question: str, images: int, cot: bool) -> Read:
    for pattern in LEGACY:
        if match := pattern.search(answer):
            return _only(_four([float(text) for text in match.groups()]))
    return NOTHING


def univg_r1_zero_shot(answer: str, question: str, images: int, cot: bool) -> Read:
    match = PAIR.search(question + "\n" + answer)
    try:
        return _only(_four([int(text) for text in match.groups()])) if match else NOTHING
    except ValueError:  # more digits than Python reads
        return NOTHING


def lmms_eval(answer: str, question: str, images: int, cot: bool) -> Read:
    match = FOUR.search(answer)
    return _only(_four([float(text) for text in match.groups()])) if match else NOTHING


PARSERS = {
    "answer_tag": Parser(answer_tag),
    "univg_r1": Parser(univg_r1),
    "migician": Parser(migician, "mixed"),
    "univg_r1_zero_shot": Parser(univg_r1_zero_shot),
    "lmms_eval": Parser(lmms_eval, "fractions", ZEROS),
}


def parser_of(name: str) -> Parser:
    """ValueError for a name that is none."""
    if name not in PARSERS:
        raise ValueError(f"--parser: expected one of {', '.join(PARSERS)}, got {name!r}")
    return PARSERS[name]


def named_image(answer: str, read: Read, images: int) -> int | None:
    """The 0-based image that an answer is about: what it names for its box, else what its text names last."""
    if images == 1:
        return 0
    told = read.images[-1] if read.images else None
    return last_image(answer, images) if told is None else told


def _only(box: Box) -> Read:
    return Read([box], [None])


def _four(numbers: list[float]) -> Box:
    x1, y1, x2, y2 = numbers
    return x1, y1, x2, y2


def _number(text: str) -> float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:  # more digits than Python reads: not finite, and so no box
        return float("inf")
