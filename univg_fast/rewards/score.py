"""The reward terms by name, and their weighted sum. A new one is a function, named in TERMS.

UniVG-R1's reward is the sum of "iou" and "format"; the difficulty weight takes its mIoU from "iou".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from univg_fast.structs import Box, Record

from . import sets, terms
from .answers import Answers, Settings, Term
from .own import is_own, own_term
from .units import Extent

TERMS: dict[str, Term] = {
    "iou": terms.iou,
    "format": terms.format_term,
    "format_strict": terms.format_strict,
    "format_tags": terms.format_tags,
    "iou_threshold": terms.iou_threshold,
    "iou_dual": terms.iou_dual,
    "giou": terms.giou,
    "center": terms.center,
    "image": sets.image,
    "image_set": sets.image_set,
    "matching": sets.matching,
    "matching_gated": sets.matching_gated,
    "matching_dual": sets.matching_dual,
    "f1": sets.f1,
    "count": sets.count,
    "length": terms.length,
    "repetition": terms.repetition,
}


@dataclass(frozen=True)
class Scores:
    """`total` [B] float32 is the weighted sum of `parts`, which are not weighted: name -> [B] float32."""

    total: np.ndarray
    parts: dict[str, np.ndarray]
    boxes: list[Box | None]  # the first of each completion


def find_terms(weights: Mapping[str, float]) -> dict[str, Term]:
    """The function of each name. ValueError where a name is no reward term or its weight no number, or without any."""
    unknown = [name for name in weights if name not in TERMS and not is_own(name)]
    if unknown or not weights:
        known, got = ", ".join(TERMS), ", ".join(weights) or "none"
        raise ValueError(f"rewards.terms: expected some of {known} or FILE.py:FUNCTION, got {got}")
    for name, weight in weights.items():
        if not np.isfinite(weight):
            raise ValueError(f"rewards.terms: {name}: expected a finite weight, got {weight}")
    return {name: TERMS[name] if name in TERMS else own_term(name) for name in weights}


def check_terms(weights: Mapping[str, float]) -> None:
    """ValueError where a name is no reward term or its weight no number, or where there is none."""
    find_terms(weights)


def score(
    texts: Sequence[str],
    records: Sequence[Record],
    weights: Mapping[str, float],
    settings: Settings | None = None,
    lengths: Sequence[int] | None = None,
    extents: Sequence[Sequence[Extent]] | None = None,
) -> Scores:
    """Score B completions, each against its own record, by the terms that `weights` names.

    `lengths`: their tokens, which the term "length" needs. `extents`: what a model's numbers end at, of each image of
    each text, where that is not 1000 (`univg_fast.data.coordinates.extents`). ValueError names an unknown term, a
    weight that is no number, a record that a term cannot score, or tells that the numbers of texts and records differ.
    """
    functions = find_terms(weights)
    for name, given in (("a record", records), ("a length", lengths), ("extents", extents)):
        if given is not None and len(given) != len(texts):
            raise ValueError(f"score: expected {name} for each of the {len(texts)} texts, got {len(given)}")
    known = None if lengths is None else np.asarray(lengths, np.int64)
    answers = Answers(texts, records, settings or Settings(), known, extents)
    parts = {name: function(answers) for name, function in functions.items()}
    total = sum((weight * parts[name] for name, weight in weights.items()), np.zeros(len(texts)))
    boxes = answers.first_boxes()
    return Scores(total.astype(np.float32), {name: part.astype(np.float32) for name, part in parts.items()}, boxes)
