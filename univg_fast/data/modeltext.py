"""Texts between the project's 0-1000 and what a model family counts in (`Family.coordinates`), both ways.

Only the numbers of boxes change: brackets, spaces and all other text stay as they are. A box that names no image is the
first one's.
"""

from __future__ import annotations

from collections.abc import Sequence

from .boxtext import TextBox, rewrite, spelled
from .coordinates import Size, from_norm1000, to_norm1000


def to_model(text: str, system: str, sizes: Sequence[Size], resized: Sequence[Size], only_tokens: bool = False) -> str:
    """A prompt's (`only_tokens`: boxes between box tokens) or a target's text in the family's numbers."""
    if system == "norm1000":
        return text

    def convert(box: TextBox, text: str) -> str:
        at = box.image or 0
        numbers = tuple(int(v) for v in box.numbers)
        return spelled(box, text, from_norm1000(numbers, system, sizes[at], resized[at]))

    return rewrite(text, convert, len(sizes), only_tokens)


def from_model(text: str, system: str, sizes: Sequence[Size], resized: Sequence[Size]) -> str:
    """A completion in 0-1000, for parsers and rewards; what is no box of its image stays as it is."""
    if system == "norm1000":
        return text

    def convert(box: TextBox, text: str) -> str:
        at = box.image or 0
        try:
            return spelled(box, text, to_norm1000(box.numbers, system, sizes[at], resized[at]))
        except ValueError:
            return text[box.start : box.end]

    return rewrite(text, convert, len(sizes))
