"""What boxes are written with: patterns that never go back (possessive quantifiers), and their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

DIGITS = 9  # longer numbers are read as 10^9, which no image has: the IoU changes by less than 1e-12
SPACE = " " + "".join(chr(c) for c in range(128, 0x3001) if chr(c).isspace())  # between two words: of ASCII one only
D, N, P = r"(\d++)", r"(-?+\d++(?:\.\d++)?+)", r"(\d++\.\d++)"
PAIR = rf"\({D},\s*+{D}\),\s*+\({D},\s*+{D}\)"
BOX = re.compile(PAIR)
IMAGE_KEYS = ("image", "image_id", "image_index", "image_idx", "img_idx", "img")
Numbers = tuple[float, float, float, float]


class Found(NamedTuple):
    """A box of a text. image: as `index` says."""

    box: Numbers
    image: int = -1
    label: str | None = None


def number(text: str) -> float:
    whole, _, fraction = text.removeprefix("-").partition(".")
    value = (int(whole) if len(whole) <= DIGITS else 10**DIGITS) + int(fraction[:9] or "0") / 10 ** len(fraction[:9])
    return -value if text.startswith("-") else float(value)


def four(groups: Sequence[str | None]) -> Numbers:
    x1, y1, x2, y2 = (number(group) for group in groups if group is not None)
    return x1, y1, x2, y2


def index(text: str | None) -> int:
    """0-based; -1: none is named, -2: image 0 is, which there is not."""
    return (int(text) or -1) - 1 if text else -1
