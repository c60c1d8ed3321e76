"""Texts between the project's 0-1000 and what a model family counts in (`Family.coordinates`), both ways.

Only the numbers of boxes change, and those of every box: also of one that leaves its image, is inverted or is spelled
in another way than was asked for, since a number left in the old unit would be read as a box of the new one. A box that
names no image has that of the record's target in its place (`boxtext.placed`); one of a prompt is the first image's.
"""

from __future__ import annotations

from collections.abc import Sequence

from univg_fast.structs import Target

from .boxtext import TextBox, in_tokens, placed, rewrite
from .coordinates import Size, from_norm1000, rescaled


def to_model(
    text: str,
    system: str,
    sizes: Sequence[Size],
    resized: Sequence[Size],
    only_tokens: bool = False,
    targets: Sequence[Target] = (),
) -> str:
    """A prompt's (`only_tokens`: boxes between box tokens) or a target's text in the family's numbers."""
    if system == "norm1000" or not sizes:
        return text

    def convert(box: TextBox) -> Sequence[float]:
        at = box.image or 0
        return from_norm1000([int(v) for v in box.numbers], system, sizes[at], resized[at])

    boxes = placed(text, len(sizes), [target.image for target in targets])
    return rewrite(text, in_tokens(text, boxes) if only_tokens else boxes, convert)


def from_model(
    text: str, system: str, sizes: Sequence[Size], resized: Sequence[Size], targets: Sequence[Target] = ()
) -> str:
    """A completion in 0-1000, for people and files; `targets` are those of its record.

    What is a form, or is none, stays that: numbers keep their sign and their point. Rewards and evaluations read the
    model's own text (`univg_fast.rewards.units`, `univg_fast.evaluate.units`).
    """
    if system == "norm1000" or not sizes:
        return text

    def convert(box: TextBox) -> Sequence[float]:
        at = box.image or 0
        return rescaled(box.numbers, system, sizes[at], resized[at])

    return rewrite(text, placed(text, len(sizes), [target.image for target in targets]), convert, _as_written)


def _as_written(written: str, value: float) -> str:
    if written.isdigit():
        return str(value)
    return "-" * written.startswith("-") + str(abs(value)) + ".0" * ("." in written)
