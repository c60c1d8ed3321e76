"""C++ face of `scan_boxes`: the texts as one run of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _library
from .._texts import CHUNK, as_bytes
from . import MODES, MOST_BOXES, STYLES, ScannedBoxes

_library.load()


def scan_boxes(texts: Sequence[str], mode: str, styles: Sequence[str], cot: Sequence[bool]) -> ScannedBoxes:
    place = {style: i for i, style in enumerate(STYLES)}
    options = torch.tensor([place[s] + 4 * bool(c) for s, c in zip(styles, cot, strict=True)], dtype=torch.int64)
    starts = range(0, max(len(texts), 1), CHUNK)
    parts = [_scan(texts[i : i + CHUNK], options[i : i + CHUNK], MODES.index(mode)) for i in starts]
    facts, ends, boxes, images = (torch.cat([part[0][i] for part in parts]) for i in range(4))
    offsets = torch.cat([ends.new_zeros(1), ends.cumsum(0)])
    format_, strict, tags, counts = facts.unbind(1)
    labels = [label for part in parts for label in part[1]]
    return ScannedBoxes(format_.bool(), strict.bool(), tags, counts, offsets, boxes, images, labels)


def _scan(texts: Sequence[str], options: Tensor, mode: int) -> tuple[tuple[Tensor, ...], list[str | None]]:
    """((facts [n, 4], boxes of each text [n], boxes, images), labels)."""
    code, text, offsets = as_bytes(texts)
    facts, ends, boxes, images, spans = torch.ops.univg_kernels.scan_boxes(text, offsets, options, mode, MOST_BOXES)
    labels: list[str | None] = [None] * len(images)
    for i in (spans[:, 0] >= 0).nonzero()[:, 0].tolist():
        begin, end = spans[i].tolist()
        labels[i] = code[begin:end].decode("utf-8", "surrogatepass")
    return (facts, ends.diff(), boxes, images), labels


@torch.library.register_fake("univg_kernels::scan_boxes")
def _(text: Tensor, offsets: Tensor, options: Tensor, mode: int, most: int) -> tuple[Tensor, ...]:
    n, m = options.shape[0], torch.library.get_ctx().new_dynamic_size()
    new = options.new_empty
    return new(n, 4), new(n + 1), new((m, 4), dtype=torch.float64), new(m), new(m, 2)
