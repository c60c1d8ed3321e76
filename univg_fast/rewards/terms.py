"""The reward terms, by name: each gives one number per completion. A new one is a function, named in TERMS.

UniVG-R1's reward is the sum of "iou" and "format"; the difficulty weight takes its mIoU from "iou".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from univg_kernels import box_iou

from univg_fast.structs import Box, Record

from .parse import answer_box, has_format


@dataclass(frozen=True)
class Answers:
    """What the terms look at: B completions, the record that each answers, and the box parsed from it."""

    texts: Sequence[str]
    records: Sequence[Record]
    boxes: Sequence[Box | None]


@dataclass(frozen=True)
class Scores:
    """`total` [B] float32 is the weighted sum of `parts`, which are not weighted: name -> [B] float32."""

    total: np.ndarray
    parts: dict[str, np.ndarray]
    boxes: list[Box | None]


def iou_term(answers: Answers) -> np.ndarray:
    """UniVG-R1's raw IoU, 0 to 1; 0 where no box was found. ValueError for a record without a box."""
    total = np.zeros(len(answers.boxes), np.float64)
    for record in answers.records:
        if record.box is None:
            raise ValueError(f"reward iou: the record {record.uid} ({record.source}) has no box to compare with")
    rows = [i for i, box in enumerate(answers.boxes) if box is not None]
    if rows:
        # float64: a box of 10^9 is legal in a completion, and its area must not be rounded
        given = torch.from_numpy(np.array([answers.boxes[i] for i in rows], np.float64))
        wanted = torch.from_numpy(np.array([answers.records[i].box for i in rows], np.float64))
        total[rows] = box_iou(given, wanted, convention="univg_r1").numpy()
    return total


def format_term(answers: Answers) -> np.ndarray:
    """1 where the completion has the required form, else 0."""
    pairs = zip(answers.texts, answers.records, strict=True)
    return np.array([has_format(text, cot=record.cot) for text, record in pairs], np.float64)


TERMS: dict[str, Callable[[Answers], np.ndarray]] = {"iou": iou_term, "format": format_term}


def check_terms(weights: Mapping[str, float]) -> None:
    """ValueError where a name is no reward term, or where there is none."""
    unknown = [name for name in weights if name not in TERMS]
    if unknown or not weights:
        raise ValueError(f"rewards.terms: expected some of {', '.join(TERMS)}, got {', '.join(weights) or 'none'}")


def score(texts: Sequence[str], records: Sequence[Record], weights: Mapping[str, float]) -> Scores:
    """Score B completions, each against its own record, by the terms that `weights` names.

    ValueError names an unknown term, or tells that the numbers of texts and records differ.
    """
    check_terms(weights)
    if len(texts) != len(records):
        raise ValueError(f"score: expected a record for each of the {len(texts)} texts, got {len(records)}")
    boxes = [answer_box(text, cot=record.cot) for text, record in zip(texts, records, strict=True)]
    answers = Answers(texts, records, boxes)
    parts = {name: TERMS[name](answers) for name in weights}
    total = sum((weight * parts[name] for name, weight in weights.items()), np.zeros(len(texts)))
    return Scores(total.astype(np.float32), {name: part.astype(np.float32) for name, part in parts.items()}, boxes)
