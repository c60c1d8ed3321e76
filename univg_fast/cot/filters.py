"""Which candidates a stage-1 file may hold, and which of them is the best. What each filter removes:

- format: anything but the strict form of the record's style; an empty <think>, or special tokens inside of it
- leak: the right answer's coordinates inside <think>
- image: a trace that does not end with an image that holds a target, or leaves one out, or answers with another
- iou_gain: reasoning that did not help, see `gains`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from univg_fast.cot.facts import image_of
from univg_fast.data.boxtext import MENTION, boxes_in, last_image
from univg_fast.data.coordinates import Size, from_norm1000, smart_resize
from univg_fast.evaluate.metrics import iou
from univg_fast.rewards import TERMS, Answers, Settings, parse
from univg_fast.structs import Box, Record

NUMBER = re.compile(r"\d{1,9}(?:\.(\d{1,9}))?|\.(\d{1,9})")  # 12, 0.12 and .12, whatever stands around it
CERTAIN = re.compile(r"\b100\s*(?:[%％]|per ?cent\b)(?!\s*(?:of|across|down|wide|high|tall)\b)", re.IGNORECASE)
QUOTIENT = re.compile(r"(\d{1,4})\s?[/⁄]\s?(\d{1,4})")  # 44/100
PERCENT = re.compile(r"[%％]|\bper ?cent\b", re.IGNORECASE)
MARKS = ("<|", "<image>")  # in a target they would be read as special tokens, or as one image more
NEAR = 2  # units of 1000 within which a number is a coordinate
ROUNDED = 5  # the same of a fraction that has two decimals, or a percentage that has none
SMALL = 12  # numbers up to here are counts and image numbers
LEAKED = 3  # coordinates of one box that make a leak
SEEN = (401408, 1003520)  # pixel budgets of models: in whose resized images boxes are counted
SAME_BOX = 0.5  # IoU from which a box inside <think> is the answer


@dataclass(frozen=True)
class Thresholds:
    """The rule of `gains`."""

    right: float = 0.5  # IoU from which an answer counts as right
    gain_right: float = 0.10  # relative gain that a right direct answer must see
    gain_wrong: float = 0.20  # the same for a wrong one that stays wrong


@dataclass(frozen=True)
class Candidate:
    """A completion that may become a target. `score`: IoU of its answer; None where it was made from the answer."""

    text: str
    score: float | None = None
    direct: float | None = None  # IoU of the direct answer, where there was one

    @property
    def think(self) -> str:
        return self.text.partition("<think>")[2].partition("</think>")[0].strip()


def removed_by(candidate: Candidate, record: Record, sizes: Sequence[Size], thresholds: Thresholds) -> str | None:
    """The first filter that removes a candidate; None for one that stays. `sizes`: of the images, where known."""
    if not well_formed(candidate, record):
        return "format"
    if leaks(candidate.think, record, sizes):
        return "leak"
    if not names_the_image(candidate, record):
        return "image"
    if candidate.score is not None and candidate.direct is not None:
        return None if gains(candidate.direct, candidate.score, thresholds) else "iou_gain"
    return None


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The highest IoU; among equals the first of the shortest traces, or the first where nothing was scored."""
    return min(candidates, key=lambda c: (-c.score, len(c.think)) if c.score is not None else (0.0, 0))


def well_formed(candidate: Candidate, record: Record) -> bool:
    """The strict form of the record's style, something inside of <think>, and no marks of ours there."""
    marked = any(mark in candidate.think for mark in MARKS)
    return bool(candidate.think) and not marked and parse(candidate.text.strip(), record.answer_style).strict


def leaks(think: str, record: Record, sizes: Sequence[Size] = ()) -> bool:
    """Whether a trace writes the answer's numbers: in 0-1000, 0-1, percents, or pixels of the image as stored or as
    resized; as corners, or as a corner or the centre with width and height."""
    numbers, fractions = _told(think)
    written = boxes_in(think, len(record.images))
    for target in record.targets:
        image = image_of(target, record)
        for wanted, unit in _spellings(target.box, sizes[image] if image < len(sizes) else None):
            if any(iou(found.numbers, wanted) >= SAME_BOX for found in written):
                return True
            told = fractions if max(wanted) <= 1 else numbers
            corners, *others = ({v for v in way if v > SMALL * unit} for way in _ways(wanted))
            if _near(corners, told, unit) >= max(2, min(LEAKED, len(corners))):
                return True
            if any(_near(other, told, unit) >= LEAKED for other in others):
                return True
    return False


def names_the_image(candidate: Candidate, record: Record) -> bool:
    """Every image that holds a target is named in the trace, one of them last, and the answer names no other."""
    number = len(record.images)
    if number == 1:
        return True
    wanted = {image_of(target, record) for target in record.targets}
    named = [last_image(match[0], number) for match in MENTION.finditer(candidate.think)]
    answered = {box.image for box in parse(candidate.text, record.answer_style).boxes} - {None}
    return bool(named) and wanted <= set(named) and named[-1] in wanted and answered <= wanted


def gains(direct: float, score: float, thresholds: Thresholds) -> bool:
    """Whether reasoning helped: a right answer got `gain_right` better, a wrong one right or `gain_wrong` better.

    Gains are relative: 0.5 to 0.55 is a gain of 10 %. A perfect direct answer leaves none, and is not kept.
    """
    if direct >= thresholds.right:
        return score >= direct * (1 + thresholds.gain_right)
    return score >= thresholds.right or (score > direct and score >= direct * (1 + thresholds.gain_wrong))


def score(text: str, record: Record) -> float:
    """IoU of a completion, 0 to 1: boxes matched with targets of the same image, over the larger of both numbers."""
    return float(TERMS["matching"](Answers([text], [record], Settings(parser="lenient")))[0])


def _near(wanted: set[float], told: Sequence[tuple[float, float]], unit: float) -> int:
    """How many of these numbers are told, up to a unit or two."""
    return sum(any(abs(v - n) <= max(NEAR * unit, slack) for n, slack in told) for v in wanted)


def _ways(box: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """A box by its corners; by one of them, width and height; by its centre, width and height."""
    x1, y1, x2, y2 = box
    across, down = x2 - x1, y2 - y1
    return box, (x1, y1, across, down), (x1 + across / 2, y1 + down / 2, across, down)


def _told(think: str) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """The numbers of a trace, and those that may be fractions of an image's side, with what rounding took from them.

    Where a trace speaks of percents, all its numbers up to 100 may be some: "from 12 to 44 percent". "100% sure" is
    none: it is said of anything.
    """
    think = CERTAIN.sub(" ", think)
    numbers, fractions, percents = [], [], PERCENT.search(think) is not None
    for found in NUMBER.finditer(think):
        value, decimals = float(found[0]), len(found[1] or found[2] or "")
        numbers.append((value, 0.0))
        if decimals:
            fractions.append((value, min(0.5 * 10**-decimals, ROUNDED / 1000) + 1e-9))
        if percents and value <= 100:
            fractions.append((value / 100, 0.005 * 10**-decimals + 1e-9))
    for found in QUOTIENT.finditer(think):
        part, whole = int(found[1]), int(found[2])
        if 0 < part < whole:
            fractions.append((part / whole, min(0.5 / whole, ROUNDED / 1000) + 1e-9))
    return numbers, fractions


def _spellings(box: Box, size: Size | None) -> list[tuple[tuple[float, ...], float]]:
    """The box as a teacher may write it, each with the length of one unit of 1000."""
    found: list[tuple[tuple[float, ...], float]] = [(box, 1.0), (from_norm1000(box, "norm1"), 1e-3)]
    if size is not None:
        for shown in (size, *(smart_resize(size, max_pixels=most) for most in SEEN)):
            found.append((from_norm1000(box, "pixel", shown), max(shown) / 1000))
    return found
