"""Boxes written in text: where they stand, which image and label they name, and putting other numbers in their place.

The grammar is that of the lenient parser (`univg_kernels.scan_boxes`), so that files, prompts and rewards mean the same
boxes: `(x1,y1),(x2,y2)`, `[x1, y1, x2, y2]`, `(x1,y1,x2,y2)`, `<box>…</box>`. The image is the one named by the JSON
object that holds the box, else by the last words before it ("Image-2", "the second picture"); the label that of the
object, or the last `<|object_ref_start|>…<|object_ref_end|>`. What is said before an answer begins names no image of
its boxes. The time is linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from univg_kernels.scan_boxes.pieces import DIGITS, N, number
from univg_kernels.scan_boxes.search import ANY, MARKS, ORDINALS
from univg_kernels.scan_boxes.search import MENTION as MENTIONED

NUMBER = re.compile(N)
MARK = re.compile(MARKS, re.DOTALL)
MENTION = re.compile(MENTIONED)
NOUNS = ("image", "picture", "photo", "frame")
BEFORE, AFTER = len("seventh "), len("picture-123.")  # of a mention, from where its noun begins; the last is no part
ANSWER = re.compile(r"</think>|<answer>")  # what comes before is no part of the answer
TOKEN_BOX = re.compile(r"<\|box_start\|>[^<]{0,80}<\|box_end\|>")


class TextBox(NamedTuple):
    """A box of a text: its span, its four numbers as written, the 0-based image and the label that the text names."""

    start: int
    end: int
    numbers: tuple[float, float, float, float]
    image: int | None = None
    label: str | None = None


def boxes_in(text: str, num_images: int) -> list[TextBox]:
    """All boxes of a text, in order."""
    found: list[TextBox] = []
    named = label = None  # what was last said
    opened = its_image = its_label = None  # the first box of the object that is open, and what that says
    for match in matches(text):
        kind = match.lastgroup
        if kind is None:
            x1, y1, x2, y2 = (_number(written) for written in NUMBER.findall(match[0]))
            found.append(TextBox(match.start(), match.end(), (x1, y1, x2, y2), named, label))
        elif kind == "ref":
            label = match["ref"] or None
        elif kind == "image":
            its_image = _index(int(match["image"]), num_images)
        elif kind == "label":
            its_label = _label(match["label"])
        elif kind == "open":
            opened, its_image, its_label = len(found), None, None
        elif kind == "close":
            for i in range(len(found) if opened is None else opened, len(found)):
                told = found[i].image if its_image is None else its_image
                found[i] = found[i]._replace(image=told, label=found[i].label if its_label is None else its_label)
            opened = None
        elif kind == "begins":
            named = None
        else:
            named = _mentioned(match, num_images, named)
    return found


def matches(text: str) -> Iterator[re.Match[str]]:
    """What `ANY` finds, in a fraction of its time: marks by their first character, mentions where a noun is near."""
    lower, at = text.lower(), 0
    if len(lower) != len(text):  # a letter that is two in lower case
        yield from ANY.finditer(text)
        return
    nouns = sorted(place for noun in NOUNS for place in _places(lower, noun))

    def mention(end: int) -> re.Match[str] | None:
        """The first one from `end` on."""
        nonlocal at
        while at < len(nouns):
            match = MENTION.search(text, max(end, nouns[at] - BEFORE), nouns[at] + AFTER)
            if match and match.start() <= nouns[at]:
                return match
            at += 1
        return None

    mark, said = MARK.search(text), mention(0)
    while mark or said:
        if said and (not mark or said.start() < mark.start()):
            yield said
            said = mention(said.end())
        elif mark:
            yield mark
            if said and said.start() < mark.end():  # within a label, or the number of an image
                said = mention(mark.end())
            mark = MARK.search(text, mark.end())


def _places(text: str, word: str) -> Iterator[int]:
    at = text.find(word)
    while at >= 0:
        yield at
        at = text.find(word, at + 1)


def last_image(text: str, num_images: int, default: int | None = None) -> int | None:
    """The 0-based index of the image that a text names last; `default` where it names none that exists."""
    for match in MENTION.finditer(text):
        default = _mentioned(match, num_images, default)
    return default


def placed(text: str, num_images: int, images: Sequence[int | None] = ()) -> list[TextBox]:
    """All boxes of a text, each with an image: where it names none, the n-th of the answer has `images[n]`.

    So the boxes of a completion have those of the record's targets, in their order; what is left belongs to the first
    one's image, or where that is not known to image 0.
    """
    boxes, (first, *_) = boxes_in(text, num_images), (*images, None)
    begins = max((match.end() for match in ANSWER.finditer(text)), default=0)
    before = sum(box.start < begins for box in boxes)
    out = []
    for i, box in enumerate(boxes):
        if box.image is None:
            other = images[i - before] if 0 <= i - before < len(images) else None
            box = box._replace(image=(first or 0) if other is None else other)
        out.append(box)
    return out


def in_tokens(text: str, boxes: Sequence[TextBox]) -> list[TextBox]:
    """Those of the boxes that stand between box tokens."""
    spans, at, out = [match.span() for match in TOKEN_BOX.finditer(text)], 0, []
    for box in boxes:
        while at < len(spans) and spans[at][1] <= box.start:
            at += 1
        if at < len(spans) and spans[at][0] <= box.start:
            out.append(box)
    return out


def plainly(written: str, value: float) -> str:
    return str(value)


def rewrite(
    text: str,
    boxes: Sequence[TextBox],
    convert: Callable[[TextBox], Sequence[float]],
    spell: Callable[[str, float], str] = plainly,
) -> str:
    """The text with other numbers in its boxes, spelled by `spell(old, value)`; brackets, commas and spaces stay."""
    parts, at = [], 0
    for box in boxes:
        pieces = NUMBER.split(text[box.start : box.end])  # every other one is a number
        pieces[1::2] = map(spell, pieces[1::2], convert(box))
        parts += [text[at : box.start], *pieces]
        at = box.end
    return "".join([*parts, text[at:]])


def _mentioned(match: re.Match[str], num_images: int, default: int | None) -> int | None:
    """The image that a match of `MENTION` names; `default` for one that there is not."""
    word, nth = match["word"], match["nth"] or match["number"]
    named = _index(ORDINALS.index(word.lower()) + 1 if word else int(nth), num_images)
    return default if named is None else named


def _index(told: int, num_images: int) -> int | None:
    return told - 1 if 1 <= told <= num_images else None


def _label(escaped: str) -> str | None:
    """A JSON string's text; None where it is none, or holds half a surrogate pair."""
    try:
        label = json.loads(f'"{escaped}"', strict=False)
        label.encode()
    except ValueError:
        return None
    return str(label)


def _number(text: str) -> float:
    if "." in text:
        return number(text)
    return int(text) if len(text) <= DIGITS else int(number(text))
