"""The door of `scan_boxes`: what completions answer, read in one pass that is linear in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._dispatch import Backend, face
from ..config import check_choice

MODES = ("univg_r1", "strict", "lenient", "univg_r1_eval", "migician")
STYLES = ("univg_r1", "bbox_2d", "box_tokens")
MOST_BOXES = 512  # that are handed over of one text; more are only counted


class ScannedBoxes(NamedTuple):
    """Of B texts, on the CPU. format [B] bool: UniVG-R1's form · strict [B] bool: the strict form of the style ·
    tags [B] int64, 0 to 4 · counts [B] int64: boxes found · offsets [B+1] int64: text i has the rows
    offsets[i] : offsets[i+1] of the following · boxes [M, 4] fp64 · images [M] int64, from 0; -1: none
    named, -2: image 0 named, which there is not · labels, M of them."""

    format: Tensor
    strict: Tensor
    tags: Tensor
    counts: Tensor
    offsets: Tensor
    boxes: Tensor
    images: Tensor
    labels: list[str | None]


def scan_boxes(
    texts: Sequence[str],
    *,
    mode: str = "strict",
    styles: str | Sequence[str] = "univg_r1",
    cot: bool | Sequence[bool] = True,
    backend: Backend = "auto",
) -> ScannedBoxes:
    """The boxes that completions answer with, the images and labels that they name, and whether their form is right.

    Modes, of which `reference.py` is the specification:
        univg_r1: UniVG-R1's reward: the first `(d,d),(d,d)` inside the first <answer>…</answer> (without cot: of the
            text). It knows one style; texts of another one are read as by "strict".
        strict: what the only <answer>…</answer> holds (without cot: it, or the text), where that is nothing but boxes
            in the style asked for.
        lenient: every box, in any spelling, of the last <answer>, or of what follows </think>, or of the text; what is
            said before that, or before a </think>, names no image.
        univg_r1_eval, migician: the first box anywhere, as the two evaluation scripts find it. Where they go on with
            zeros there is no box here; Migician's fractions are given in thousandths.
    The forms: UniVG-R1's (`format`), the strict one (`strict`: <think>…</think>, <answer>boxes</answer>, nothing else,
    no tag twice), and how many of the four tags stand once and in their order (`tags`).
    Numbers of more than nine digits are read as 10^9; images count from 1 in texts. Digits and white space beyond ASCII
    are read as those of ASCII; labels are as the text has them.

    Args:
        texts: B strings. styles, cot: of each text, or of all: "univg_r1", "bbox_2d" or "box_tokens"; whether
            reasoning was asked for.
    Raises: ValueError for a mode or style that is none, and for lists of another length.
    """
    op = "scan_boxes"
    check_choice(op, "mode", mode, MODES)
    each = [styles] * len(texts) if isinstance(styles, str) else list(styles)
    thinks = [cot] * len(texts) if isinstance(cot, bool) else list(cot)
    for name, given in (("styles", each), ("cot", thinks)):
        if len(given) != len(texts):
            raise ValueError(f"{op}: {name} must have one entry for each of {len(texts)} texts, got {len(given)}")
    for style in set(each):
        check_choice(op, "styles", style, STYLES)
    return face(op, torch.device("cpu"), backend).scan_boxes(texts, mode, each, thinks)
