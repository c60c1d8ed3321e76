"""Answers to rows: each item's box against its truth, by a protocol and a parser. The only place where that is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from univg_kernels import matched_iou

from univg_fast.rewards import Answers
from univg_fast.rewards.terms import format_term

from .items import AS_TOLD, Form, Item, Protocol, Truth, record_of, truth_problem
from .overlap import Numbers, box_fault, iou
from .parsers import Box, Parser, Read, named_image
from .predictions import Prediction
from .units import read_answer, text_of

GIVEN = Parser(lambda *_: Read([], []))  # boxes of a file that has no texts: thousandths
ANYWHERE = -1  # of matched_iou: at home in every image
NOWHERE = 10**6


def score(
    items: Sequence[Item],
    predictions: Mapping[str, Prediction],
    protocol: Protocol,
    parser: Parser,
    form: Form = AS_TOLD,
) -> list[dict[str, Any]]:
    """A row for each item, and for each target of one with several (uid#1, uid#2, …), in their order.

    Boxes of rows are in thousandths, for people and pictures; `iou` is that of the protocol. An item without a
    prediction has an empty one. `form`: what was asked for; `format` is the reward's of that name, None of boxes that
    came without a text.
    """
    said = [predictions.get(item.uid, Prediction()) for item in items]
    forms = format_term(Answers([one.text for one in said], [record_of(item, form) for item in items]))
    rows = []
    for item, one, right in zip(items, said, forms.tolist(), strict=True):
        rows += _rows(item, one, None if one.boxes is not None else right, protocol, parser)
    return rows


def _rows(item: Item, said: Prediction, form: float | None, protocol: Protocol, parser: Parser) -> list[dict[str, Any]]:
    if said.boxes is not None:
        parser, read = GIVEN, Read(list(said.boxes), list(said.box_images))
    else:
        read, parser = read_answer(said, item, parser)
    row = {
        "uid": item.uid,
        "task": item.task,
        "images": list(item.images),
        "sizes": [list(size) for size in said.sizes],
        "question": item.question,
        "target_image": item.target_image,
        "text": text_of(said, item),
        "format": form,
        "tokens": said.tokens,
        "boxes": len(read.boxes),
        "image": named_image(said.text, read, len(item.images)),
    }
    wrong = said.error or truth_problem(item)
    row |= {"error": wrong} if wrong else {}
    if len(item.truths) > 1:
        return _several(row, item, read, protocol, parser)
    truth = item.truths[0] if item.truths else None
    return [row | _scored(read.boxes[-1] if read.boxes else None, truth, protocol, parser)]


def _scored(box: Box | None, truth: Truth | None, protocol: Protocol, parser: Parser) -> dict[str, Any]:
    right = None if truth is None else truth.box
    shown: Numbers | None = None
    fault: str | None = "no_box"
    scaled: Numbers | None = parser.absent
    if box is not None:
        sound = box_fault(box) != "bad_box"  # numbers
        scaled = parser.scaled(box, protocol.unit) if sound else None
        shown = parser.scaled(box, "thousandths") if sound else None
        fault = box_fault(scaled) if sound else "bad_box"  # Migician's may be inverted as written and not in units
    center = {"center": float(_center_inside(scaled, right))} if protocol.name == "lmms_eval" else {}
    score = 0.0 if box is None else iou(scaled, right, protocol.epsilon)
    return {
        "gt": _shown(right, protocol),
        "box": list(shown) if shown else None,
        "iou": score,
        "fault": fault,
        **center,
    }


def _several(row: dict[str, Any], item: Item, read: Read, protocol: Protocol, parser: Parser) -> list[dict[str, Any]]:
    """A row for each target, with the box that the best matching gives it. A target without one has the fault of a box
    that cannot be scored, as long as there are such; else it is "unmatched", or the answer has "no_box"."""
    faults = iter([fault for box in read.boxes if (fault := box_fault(box))])
    good = [(box, image) for box, image in zip(read.boxes, read.images, strict=True) if not box_fault(box)]
    scaled = [(parser.scaled(box, protocol.unit), image) for box, image in good]
    alone = len(item.images) == 1
    partner = _partners(item.truths, scaled, alone)
    rows = []
    for k, (truth, at) in enumerate(zip(item.truths, partner, strict=True)):
        box, image = good[at] if at >= 0 else (None, None)
        one = row | _scored(box, truth, protocol, parser)
        one |= {} if box or not read.boxes else {"fault": next(faults, "unmatched")}
        one |= {"uid": f"{item.uid}#{k + 1}", "sample": item.uid, "target_image": 0 if alone else truth.image}
        rows.append(one | {"image": 0 if alone else image, "wanted": len(item.truths)})
    return rows


def _partners(truths: Sequence[Truth], boxes: Sequence[tuple[Box, int | None]], alone: bool) -> list[int]:
    """The box of each target, -1 for none: boxes lie in the image that they name, where several are shown."""
    if not boxes:
        return [-1] * len(truths)
    wanted = [ANYWHERE if alone or truth.image is None else truth.image for truth in truths]
    named = [ANYWHERE if alone else NOWHERE if image is None else image for _, image in boxes]
    found = matched_iou(
        torch.tensor([truth.box for truth in truths], dtype=torch.float64),
        torch.tensor([box for box, _ in boxes], dtype=torch.float64),
        torch.tensor([0, len(truths)]),
        torch.tensor([0, len(boxes)]),
        images1=torch.tensor(wanted),
        images2=torch.tensor(named),
    )
    return [int(at) for at in found.partner]


def _center_inside(box: Numbers | None, truth: Numbers | None) -> bool:
    """lmms-eval's Center_ACC."""
    if box is None or truth is None:
        return False
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return truth[0] <= x <= truth[2] and truth[1] <= y <= truth[3]


def _shown(box: Numbers | None, protocol: Protocol) -> list[float] | None:
    """A truth in thousandths, without numbers that JSON does not have."""
    if box is None or box_fault(box) == "bad_box":
        return None
    return [value * 1000 for value in box] if protocol.unit == "fractions" else list(box)
