"""What stage 1 teaches of a record: its response, in the form that the prompt asks for.

Boxes are rewritten where their form is another; a sentence stays as it is, and its prompt asks for no form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from univg_kernels.scan_boxes.answers import strict
from univg_kernels.scan_boxes.pieces import BOX, Found

from univg_fast.structs import Record, Target

from .answers import answer_span, only_boxes, style_of, thought
from .boxtext import TextBox, boxes_in
from .errors import Refused
from .prompts import answer_text, knows_images, right_answer, shows_images

UNIT = 1  # by which a text's numbers may differ from the target's: those were rounded, and a thin box widened


def taught(record: Record, asked: bool) -> tuple[Record, str | None]:
    """The record as it is learned; and to what its response was rewritten, where it was.

    `asked`: rewards want answers that name the images of their boxes; done where they are known. Refused where the
    response contradicts the targets, or its tags do not pair.
    """
    response = record.response
    if response is None or not record.targets:
        return replace(record, names_images=asked and knows_images(record)), None
    span = answer_span(response)
    if span is None:
        raise Refused("schema", "the response has reasoning and no <answer>…</answer> behind it")
    if not only_boxes(response):
        return replace(record, names_images=asked and knows_images(record)), None
    start, end = span
    body, after = response[start:end], thought(response)
    told = [box for box in boxes_in(response[after:], len(record.images)) if start <= box.start + after < end]
    written = strict(body, style_of(body), cot=False)
    targets = None if _elsewhere(record, written) else _completed(record, told)
    if targets is None:
        right = answer_text(record.targets, names_images=True).replace("\n", ", ")
        raise Refused("schema", f"the response answers {_brief(body.strip())}, and the target is {_brief(right)}")
    named = bool(written) and all(box.image >= 0 for box in written)
    record = replace(record, targets=targets)
    record = replace(record, names_images=(asked or named) and knows_images(record))
    if _right(record, body):
        return record, None
    form = record.answer_style + (" with images" if shows_images(record) and not named else "")
    return replace(record, response=response[:start] + right_answer(record) + response[end:]), form


def _elsewhere(record: Record, written: Sequence[Found]) -> bool:
    """Whether an answer names an image that the record does not have."""
    return not all(-1 <= box.image < len(record.images) for box in written)


def _completed(record: Record, told: Sequence[TextBox]) -> tuple[Target, ...] | None:
    """The targets, with images and labels that only the response tells; None where it tells other boxes or images."""
    several = len(record.images) > 1
    out, left = list(record.targets), list(range(len(record.targets)))
    if len(told) != len(left):
        return None
    for box in told:
        found = next((i for i in left if _same(box, record.targets[i], several)), None)
        if found is None:
            return None
        left.remove(found)
        target = out[found]
        image = box.image if several and target.image is None else target.image
        out[found] = replace(target, image=image, label=box.label if target.label is None else target.label)
    return tuple(out)


def _same(box: TextBox, target: Target, several: bool) -> bool:
    if several and None not in (box.image, target.image) and box.image != target.image:
        return False
    return all(abs(a - b) <= UNIT for a, b in zip(box.numbers, target.box, strict=True))


def _right(record: Record, body: str) -> bool:
    """Whether an answer has the form that the prompt asks for."""
    found, shown, style = strict(body, record.answer_style, cot=False), shows_images(record), record.answer_style
    if len(found) != len(record.targets):
        return False
    for box, target in zip(found, record.targets, strict=True):
        if box.box != target.box or box.image != (target.image if shown else -1):
            return False
        if style == "bbox_2d" and (box.label is None) != (target.label is None):
            return False
    if style != "bbox_2d" and len(found) > 1:
        return len(body.split("\n")) == len(found)  # one on a line
    return style != "univg_r1" or shown or BOX.fullmatch(body) is not None  # UniVG-R1's, which knows no space around it


def _brief(text: str) -> str:
    return text if len(text) <= 160 else text[:159] + "…"
