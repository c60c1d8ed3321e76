"""Boxes written in text: where they stand, which image and label they name, and putting other numbers in their place.

Read are `(x1,y1),(x2,y2)` (with or without `<|box_start|>`) and `[x1, y1, x2, y2]` (with or without `"bbox_2d":`). The
image is the one named by the JSON object that holds the box, else by the last words before it ("Image-2", "the second
image"); the label that of the object, or the last `<|object_ref_start|>…<|object_ref_end|>`. Every search is bounded:
the time is linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

NUMBER = r"(-?\d{1,9}(?:\.\d{1,9})?)"
GAP = r"\s{0,4}"
COMMA = f"{GAP},{GAP}"
PAIRS = rf"\({GAP}{NUMBER}{COMMA}{NUMBER}{GAP}\){COMMA}\({GAP}{NUMBER}{COMMA}{NUMBER}{GAP}\)"
LIST = rf"\[{GAP}{NUMBER}{COMMA}{NUMBER}{COMMA}{NUMBER}{COMMA}{NUMBER}{GAP}\]"
BOX = re.compile(f"{PAIRS}|{LIST}")
TOKEN_BOX = re.compile(r"<\|box_start\|>[^<]{0,80}<\|box_end\|>")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
MENTION = re.compile(
    rf"\bimage[ \-_#]?(\d{{1,3}})\b|\b({'|'.join(ORDINALS)}|\d{{1,3}}(?:st|nd|rd|th)) (?:image|picture|photo|frame)\b",
    re.IGNORECASE,
)
JSON_IMAGE = re.compile(
    r'"(?:image|image_id|image_index|img_idx|image_idx)"\s{0,4}:\s{0,4}"?(?:image[ \-]?)?(\d{1,3})', re.I
)
JSON_LABEL = re.compile(r'"label"\s{0,4}:\s{0,4}("(?:[^"\\]|\\.){0,200}")')
REF = re.compile(r"<\|object_ref_start\|>([^<]{0,200})<\|object_ref_end\|>")
REACH = 400  # characters of a JSON object on either side of its box


@dataclass(frozen=True)
class TextBox:
    """A box of a text: its span, its four numbers as written, the 0-based image and the label that the text names."""

    start: int
    end: int
    numbers: tuple[float, float, float, float]
    image: int | None = None
    label: str | None = None


def boxes_in(text: str, num_images: int) -> list[TextBox]:
    """All boxes of a text, in order."""
    found, named, label, at = [], None, None, 0
    for match in BOX.finditer(text):
        before = text[at : match.start()]
        named = last_image(before, num_images, named)
        label = next((ref[1] for ref in reversed(list(REF.finditer(before)))), label)
        image, its_label = _from_object(text, match, num_images)
        x1, y1, x2, y2 = (_number(group) for group in match.groups() if group is not None)
        its_image = image if image is not None else named
        found.append(TextBox(match.start(), match.end(), (x1, y1, x2, y2), its_image, its_label or label))
        at = match.end()
    return found


def last_image(text: str, num_images: int, default: int | None = None) -> int | None:
    """The 0-based index of the image that a text names last; `default` where it names none that exists."""
    for match in MENTION.finditer(text):
        word = (match[1] or match[2]).lower()
        number = ORDINALS.index(word) + 1 if word in ORDINALS else int(re.sub(r"\D", "", word))
        default = number - 1 if 1 <= number <= num_images else default
    return default


def rewrite(text: str, convert: Callable[[TextBox, str], str], num_images: int, only_tokens: bool = False) -> str:
    """The text with each box replaced by `convert(box, text)`; `only_tokens`: each of those between box tokens."""
    spans = [match.span() for match in TOKEN_BOX.finditer(text)] if only_tokens else []
    parts, at, span = [], 0, 0
    for box in boxes_in(text, num_images):
        while span < len(spans) and spans[span][1] <= box.start:
            span += 1
        if only_tokens and not (span < len(spans) and spans[span][0] <= box.start):
            continue
        parts += [text[at : box.start], convert(box, text)]
        at = box.end
    return "".join([*parts, text[at:]])


def spelled(box: TextBox, text: str, numbers: tuple[float, ...]) -> str:
    """Other numbers in the spelling that `box` has in `text`: brackets, commas and spaces stay."""
    new = (f"{number:g}" if isinstance(number, float) else str(number) for number in numbers)
    return re.sub(NUMBER, lambda match: next(new), text[box.start : box.end])


def _from_object(text: str, match: re.Match[str], num_images: int) -> tuple[int | None, str | None]:
    """Image and label of the JSON object around a box."""
    start = text.rfind("{", max(0, match.start() - REACH), match.start())
    if start < 0 or "}" in text[start : match.start()]:
        return None, None
    end = text.find("}", match.end(), match.end() + REACH)
    inside = text[start : end if end >= 0 else match.end() + REACH]
    image, label = JSON_IMAGE.search(inside), JSON_LABEL.search(inside)
    number = int(image[1]) if image else 0
    return (number - 1 if 1 <= number <= num_images else None), (_label(label[1]) if label else None)


def _label(quoted: str) -> str | None:
    """A JSON string's text; None where it is none, or holds half a surrogate pair."""
    try:
        label = json.loads(quoted, strict=False)
        label.encode()
    except ValueError:
        return None
    return label


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)
