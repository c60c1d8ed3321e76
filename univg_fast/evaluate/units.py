"""Boxes of answers in thousandths, also of models that count in pixels of the resized image (`Prediction.resized`)."""

from __future__ import annotations

from univg_fast.data.boxtext import placed
from univg_fast.data.modeltext import from_model

from .items import Item, record_of
from .parsers import Box, Parser, Read
from .predictions import Prediction


def read_answer(said: Prediction, item: Item, parser: Parser) -> tuple[Read, Parser]:
    """The boxes that `parser` finds in the text as the model wrote it, and what their numbers are.

    Those of such a model become thousandths, not rounded, as in its rewards. One that names no image lies in that of
    the item's target (`placed`); what the parser took out of the question is in its own unit already.
    ValueError for another number of sizes than of images.
    """
    read = parser.read(said.text, item.question, len(item.images), item.cot)
    if not said.resized:
        return read, parser
    if len(said.resized) != len(item.images):
        n = len(item.images)
        raise ValueError(f"{item.uid}: resized: expected the size of each of its {n} images, got {len(said.resized)}")
    left = placed(said.text, len(said.resized), [truth.image for truth in item.truths])
    boxes = []
    for box in reversed(read.boxes):  # the answer's are the text's last
        at = max((k for k, one in enumerate(left) if _same(box, one.numbers)), default=None)
        if at is None:
            boxes.append(parser.scaled(box, "thousandths"))
        else:
            boxes.append(_thousandths(box, said.resized[left[at].image or 0]))
            del left[at:]
    return read._replace(boxes=boxes[::-1]), parser._replace(unit="thousandths")


def text_of(said: Prediction, item: Item) -> str:
    """The answer with its boxes in whole thousandths, for people and pages."""
    if not said.resized:
        return said.text
    return from_model(said.text, "resized", said.resized, said.resized, record_of(item).targets)


def _same(box: Box, found: Box) -> bool:
    """Up to the digits that are read of a long number."""
    return all(b - 1e-6 <= a <= b + 1e-6 for a, b in zip(box, found, strict=True))


def _thousandths(box: Box, size: tuple[int, int]) -> Box:
    x1, y1, x2, y2 = (value * 1000 / side for value, side in zip(box, size * 2, strict=True))
    return x1, y1, x2, y2
