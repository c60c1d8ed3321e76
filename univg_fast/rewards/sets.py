"""The reward terms of image indices and of sets of boxes.

P are the boxes of a completion, with the images that they name, T the record's targets. A target whose image the file
does not tell may lie in any. Where a record has one image, nobody needs to name it.
"""

from __future__ import annotations

import numpy as np
import torch
from univg_kernels import MatchedIou, matched_iou

from .answers import NO_IMAGE, Answers, Array
from .terms import dual


def image(answers: Answers) -> Array:
    """1 where the first box names the image of the first target, else 0. ValueError where the file tells none."""
    wanted = _told(answers, "image")[answers.wanted.offsets[:-1]]
    given = answers.given.images[answers.given.offsets[:-1][answers.answered]]
    return answers.spread(given == wanted[answers.answered])


def image_set(answers: Answers) -> Array:
    """|I(P) ∩ I(T)| / |I(P) ∪ I(T)| of the sets of images. ValueError where the file tells none."""
    given, wanted = (
        _sets(answers.given.images, answers.given.offsets),
        _sets(_told(answers, "image_set"), answers.wanted.offsets),
    )
    return np.array([len(p & t) / len(p | t) for p, t in zip(given, wanted, strict=True)], np.float64)


def matching(answers: Answers) -> Array:
    """sum of IoU over the best matching of P and T / max(|P|, |T|). Boxes are matched within an image; one that names
    no image passes for any."""
    return _share(answers, match(answers).total.numpy())


def matching_gated(answers: Answers) -> Array:
    """The same, where a box that does not name its image matches nothing: 0 where no image is named right."""
    return _share(answers, match(answers, gated=True).total.numpy())


def matching_dual(answers: Answers) -> Array:
    """matching_gated with each matched IoU as in iou_dual (MG-Thinker; theirs is the sum, this the share)."""
    matched = match(answers, gated=True)
    return _share(answers, _per_text(dual(matched.iou.numpy(), answers), answers))


def f1(answers: Answers) -> Array:
    """2·hits / (|P| + |T|), hits: boxes of the best matching with IoU >= rewards.iou_threshold."""
    hits = _per_text((match(answers).iou.numpy() >= answers.settings.iou_threshold).astype(np.float64), answers)
    return 2 * hits / (answers.found.counts.numpy() + answers.wanted.counts)


def count(answers: Answers) -> Array:
    """-min(1, ||P| - |T|| / |T|): 0 for the right number of boxes."""
    wanted = answers.wanted.counts
    return -np.minimum(1.0, np.abs(answers.found.counts.numpy() - wanted) / wanted)


def match(answers: Answers, gated: bool = False) -> MatchedIou:
    """The matching of the given boxes (first side) with the wanted ones."""
    given, wanted = answers.given, answers.wanted
    named = np.where(given.images < 0, NO_IMAGE, given.images) if gated else given.images
    tensors = (torch.from_numpy(x) for x in (given.boxes, wanted.boxes, given.offsets, wanted.offsets))
    return matched_iou(*tensors, images1=torch.from_numpy(named), images2=torch.from_numpy(wanted.images))


def _share(answers: Answers, totals: Array) -> Array:
    return totals / np.maximum(answers.found.counts.numpy(), answers.wanted.counts)


def _per_text(values: Array, answers: Answers) -> Array:
    """Sums over the given boxes of each text."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return sums[answers.given.offsets[1:]] - sums[answers.given.offsets[:-1]]


def _sets(images: Array, offsets: Array) -> list[set[int]]:
    numbers, ends = images.tolist(), offsets.tolist()
    return [set(numbers[begin:end]) - {-1} for begin, end in zip(ends, ends[1:], strict=False)]


def _told(answers: Answers, term: str) -> Array:
    """The targets' images, all of which must be known."""
    images = answers.wanted.images
    if (images < 0).any():
        at = int(np.searchsorted(answers.wanted.offsets, int((images < 0).argmax()), side="right")) - 1
        record = answers.records[at]
        raise ValueError(
            f"reward {term}: the record {record.uid} ({record.source}) has several images and does not tell the "
            "target's; write it into the file (image), or leave this term out"
        )
    return images
