"""The reward terms of image indices and of sets of boxes.

P are the boxes of a completion, with the images that they name, T the record's targets. A target whose image the file
does not tell may lie in any. Where a record has one image, nobody needs to name it. A box that names an image which the
record does not have ("Image-0", "Image-9" of three) lies in none.
"""

from __future__ import annotations

import numpy as np
import torch
from univg_kernels import MatchedIou, matched_iou

from .answers import NO_IMAGE, WRONG_IMAGE, Answers, Array
from .terms import dual

IMAGES = 1 << 32  # more than there are
UNTOLD = (
    "compares images, and the file does not tell which of the record's several images holds a target: write it into "
    "the file (target_image, or image of each target), or reward without this term"
)


def image(answers: Answers) -> Array:
    """1 where the first box names the image of the first target, else 0. ValueError where the file tells none."""
    wanted = _told(answers, "image")[answers.wanted.offsets[:-1]]
    given = answers.given.images[answers.given.offsets[:-1][answers.answered]]
    return answers.spread(given == wanted[answers.answered])


def image_set(answers: Answers) -> Array:
    """|I(P) ∩ I(T)| / |I(P) ∪ I(T)| of the sets of images. ValueError where the file tells none."""
    given = _pairs(answers.given.images, answers.given.offsets)
    wanted = _pairs(_told(answers, "image_set"), answers.wanted.offsets)
    texts = len(answers.texts)
    common, both = (
        np.bincount(pairs // IMAGES, minlength=texts)
        for pairs in (np.intersect1d(given, wanted, assume_unique=True), np.union1d(given, wanted))
    )
    return common / both


def matching(answers: Answers) -> Array:
    """sum of IoU over the best matching of P and T / max(|P|, |T|). Boxes are matched within an image; one that names
    no image passes for any."""
    return _share(answers, match(answers).total.numpy())


def matching_gated(answers: Answers) -> Array:
    """The same, where a box must name its image: IoU counts where both lie in the same one."""
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
    return 0.0 - np.minimum(1.0, np.abs(answers.found.counts.numpy() - wanted) / wanted)


def match(answers: Answers, gated: bool = False) -> MatchedIou:
    """The matching of the given boxes (first side) with the wanted ones."""
    given, wanted = answers.given, answers.wanted
    named = np.where(given.images < 0, NO_IMAGE, given.images) if gated else given.images
    boxes = np.where((named == WRONG_IMAGE)[:, None], np.nan, given.boxes)  # overlaps nothing, wherever the target is
    tensors = (torch.from_numpy(x) for x in (boxes, wanted.boxes, given.offsets, wanted.offsets))
    return matched_iou(*tensors, images1=torch.from_numpy(named), images2=torch.from_numpy(wanted.images))


def _share(answers: Answers, totals: Array) -> Array:
    return totals / np.maximum(answers.found.counts.numpy(), answers.wanted.counts)


def _per_text(values: Array, answers: Answers) -> Array:
    """Sums over the given boxes of each text."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return sums[answers.given.offsets[1:]] - sums[answers.given.offsets[:-1]]


def _pairs(images: Array, offsets: Array) -> Array:
    """The different (text, image) as text * IMAGES + image, in order."""
    texts = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.unique((texts * IMAGES + images)[images >= 0])


def _told(answers: Answers, term: str) -> Array:
    """The targets' images, all of which must be known."""
    images = answers.wanted.images
    if (images < 0).any():
        at = int(np.searchsorted(answers.wanted.offsets, int((images < 0).argmax()), side="right")) - 1
        record = answers.records[at]
        raise ValueError(f"{record.source}: record {record.uid}: reward {term} {UNTOLD}")
    return images
