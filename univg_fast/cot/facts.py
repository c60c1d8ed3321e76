"""What a record's boxes say without their numbers: where a thing lies, how large it is, how two of them relate.

Boxes are 0-1000 of their own image, so things of two images are compared by their places in their images.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

from univg_fast.data.boxtext import boxes_in, last_image
from univg_fast.evaluate.metrics import iou
from univg_fast.structs import Box, Record, Target

APART = 80  # units between two centres from which one lies left of or above the other
LARGER = 1.5  # ratio of two areas from which one is larger
SAME_PLACE = 0.3  # IoU from which two boxes overlap
AFTER = 20  # characters behind a box in which its image may be named
ARTICLE = re.compile(r"(?:the|a|an|this|that|his|her|its|their)\b", re.IGNORECASE)
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "middle", "right")
SIZES = ((0.02, "tiny"), (0.10, "small"), (0.30, "of medium size"), (1.01, "large"))  # by the share of the image


class UnknownImage(ValueError):
    """A record does not say which of its images holds a target."""


@dataclass(frozen=True)
class Thing:
    """An object that a record knows: a target, or a box that its question shows. `image` counts from 0."""

    name: str
    image: int
    box: Box
    is_target: bool


def image_of(target: Target, record: Record) -> int:
    """The image that holds a record's target, from 0. UnknownImage where the record does not say."""
    number = len(record.images)
    image = 0 if number == 1 else target.image
    if image is None:
        raise UnknownImage(f"{record.source}: which of its {number} images holds the target?")
    return image


def things_of(record: Record) -> list[Thing]:
    """Targets first, then the question's boxes. UnknownImage for a target whose image the record does not say."""
    things, number = [], len(record.images)
    for target in record.targets:
        name = _named(target.label, "the object asked for")
        things.append(Thing(name, image_of(target, record), target.box, True))
    for found in boxes_in(record.question, number):
        image = 0 if number == 1 else found.image
        if image is None:  # "(…),(…) of image 1"
            image = last_image(record.question[found.end : found.end + AFTER], number)
        x1, y1, x2, y2 = (int(v) for v in found.numbers)
        if image is not None and 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000:
            things.append(
                Thing(_named(found.label, "the region marked in the question"), image, (x1, y1, x2, y2), False)
            )
    return _told_apart(things)


def place(box: Box) -> str:
    """The part of its image that a box's centre lies in, in words."""
    row, column = _third(box[1] + box[3]), _third(box[0] + box[2])
    if row == 1:
        return "in the centre" if column == 1 else f"on the {COLUMNS[column]}"
    return f"in the {ROWS[row]} {COLUMNS[column]}"


def size(box: Box) -> str:
    """How much of its image a box takes, in words."""
    share = area(box) / 1e6
    return next(word for limit, word in SIZES if share < limit)


def relations(first: Thing, second: Thing) -> list[str]:
    """What holds between two things, as verb phrases: `first` + phrase + `second`."""
    found, near = [], "" if first.image == second.image else " in its image"
    across, down = (first.box[i] + first.box[i + 2] - second.box[i] - second.box[i + 2] for i in (0, 1))
    if abs(across) >= 2 * APART:
        found.append(f"lies further to the {'left' if across < 0 else 'right'}{near} than")
    if abs(down) >= 2 * APART:
        found.append(f"lies {'above' if down < 0 else 'below'}" if not near else f"lies {_higher(down)}{near} than")
    ratio = area(first.box) / area(second.box)
    if ratio >= LARGER or ratio <= 1 / LARGER:
        found.append(f"is {'larger' if ratio > 1 else 'smaller'}{near} than")
    if iou(first.box, second.box) >= SAME_PLACE:
        found.append("overlaps" if not near else "stands at about the same place as")
    return found


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _named(label: str | None, otherwise: str) -> str:
    label = " ".join((label or "").split())
    return otherwise if not label else label if ARTICLE.match(label) else f"the {label}"


def _higher(down: int) -> str:
    return "higher" if down < 0 else "lower"


def _third(doubled_centre: int) -> int:
    return min(2, doubled_centre * 3 // 2000)


def _told_apart(things: list[Thing]) -> list[Thing]:
    """Things of one name in one image get numbers, as words of an order: "the dog (first)"."""
    words = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
    together, seen, out = Counter((t.name, t.image) for t in things), Counter[tuple[str, int]](), []
    for thing in things:
        key = (thing.name, thing.image)
        order = words[seen[key]] if seen[key] < len(words) else "another"
        out.append(replace(thing, name=f"{thing.name} ({order})") if together[key] > 1 else thing)
        seen[key] += 1
    return out
