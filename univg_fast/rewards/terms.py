"""The reward terms of form, of one box, and of the text: each gives one number per completion.

Terms about the first box compare it with the first target and look at no image. Those about sets are in `sets.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from univg_kernels import box_iou, distinct_runs

from .answers import Answers, Array


def format_term(answers: Answers) -> Array:
    """1 where the completion has UniVG-R1's form, else 0. Of an answer that names images, or has several boxes, or in
    another style: the strict form."""
    theirs = [r.answer_style == "univg_r1" and len(r.targets) < 2 and not r.names_images for r in answers.records]
    return np.where(np.array(theirs, bool), answers.found.format.numpy(), answers.found.strict.numpy()).astype(
        np.float64
    )


def format_strict(answers: Answers) -> Array:
    """1 where the whole completion is <think>…</think><answer>boxes in the style asked for</answer>, no tag twice."""
    return answers.found.strict.numpy().astype(np.float64)


def format_tags(answers: Answers) -> Array:
    """0.25 for each of the four tags that stands once and in its order."""
    return answers.found.tags.numpy() * 0.25


def iou(answers: Answers) -> Array:
    """UniVG-R1's raw IoU: an overlap of one unit or less counts as none; 0 where no box was found."""
    return answers.spread(_overlap(answers, "iou", "univg_r1"))


def iou_threshold(answers: Answers) -> Array:
    """1 where IoU >= rewards.iou_threshold, else 0."""
    return answers.spread(_overlap(answers) >= answers.settings.iou_threshold)


def iou_dual(answers: Answers) -> Array:
    """1 where IoU >= rewards.iou_high, 0 below rewards.iou_low, the IoU between them (MG-Thinker)."""
    return answers.spread(dual(_overlap(answers), answers))


def giou(answers: Answers) -> Array:
    """IoU - (hull - union) / hull, -1 to 1; -1 where no box was found, or one without area."""
    return answers.spread(np.where(_has_area(answers), _overlap(answers, "giou"), -1.0), missing=-1.0)


def center(answers: Answers) -> Array:
    """1 where the centre of the box lies in the target or on its edge, else 0; 0 for a box without area."""
    given, wanted = answers.first_given, answers.first_wanted
    middle = (given[:, :2] + given[:, 2:]) / 2
    inside = ((middle >= wanted[:, :2]) & (middle <= wanted[:, 2:])).all(1)
    return answers.spread(inside & _has_area(answers))


def _has_area(answers: Answers) -> Array:
    """[B'] of the first boxes: an inverted or empty one must not outscore an honest miss."""
    given = answers.first_given
    return np.all(given[:, :2] < given[:, 2:], axis=1)


def length(answers: Answers) -> Array:
    """DAPO's soft punishment: 0 up to L - buffer tokens, then falling in a line to -1 at L = rewards.length_limit."""
    if answers.lengths is None:
        raise ValueError("reward length: expected the number of tokens of each completion (lengths), got none")
    limit, buffer = answers.settings.length_limit, answers.settings.length_buffer
    return 0.0 - np.clip((np.asarray(answers.lengths, np.float64) - (limit - buffer)) / buffer, 0.0, 1.0)


def repetition(answers: Answers) -> Array:
    """-(1 - different/all) of the runs of rewards.repetition_ngram words: 0 where none comes twice, down to -1.

    An answer in the strict form does not count: JSON has the same words in every object.
    """
    strict = answers.found.strict.tolist()
    counted = distinct_runs(answers.texts, answers.settings.repetition_ngram, unanswered=strict)
    different, runs = counted.double().unbind(1)
    return (different / runs.clamp(min=1.0) - (runs > 0).double()).numpy()


def dual(overlaps: Array, answers: Answers) -> Array:
    settings = answers.settings
    return np.where(overlaps >= settings.iou_high, 1.0, np.where(overlaps >= settings.iou_low, overlaps, 0.0))


def _overlap(answers: Answers, kind: str = "iou", convention: str = "continuous") -> Array:
    """[B'] fp64: a box of 10^9 is legal in a completion, and its area must not be rounded."""
    given, wanted = torch.from_numpy(answers.first_given), torch.from_numpy(answers.first_wanted)
    return box_iou(given, wanted, kind=kind, convention=convention).numpy()
