"""What completions answer: the specification, in regular expressions that take time linear in the text.

`answers.py` and `search.py` hold the modes. They read digits and white space as `re` does, those beyond ASCII included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from . import MOST_BOXES, ScannedBoxes
from .answers import has_format, strict, strict_form, tags_in_order, univg_r1
from .pieces import Found
from .search import lenient, migician, univg_r1_eval

__all__ = ["READ", "scan_boxes"]

READ: dict[str, Callable[[str, str, bool], list[Found]]] = {
    "univg_r1": univg_r1, "strict": strict, "lenient": lenient, "univg_r1_eval": univg_r1_eval, "migician": migician,
}  # fmt: skip


def scan_boxes(texts: Sequence[str], mode: str, styles: Sequence[str], cot: Sequence[bool]) -> ScannedBoxes:
    each = list(zip(texts, styles, cot, strict=True))
    found = [READ[mode](*one) for one in each]
    counts = torch.tensor([len(boxes) for boxes in found], dtype=torch.int64)
    kept = [box for boxes in found for box in boxes[:MOST_BOXES]]
    offsets = torch.cat([counts.new_zeros(1), counts.clamp(max=MOST_BOXES).cumsum(0)])
    return ScannedBoxes(
        torch.tensor([has_format(text, think) for text, _, think in each], dtype=torch.bool),
        torch.tensor([strict_form(*one) for one in each], dtype=torch.bool),
        torch.tensor([tags_in_order(text) for text in texts], dtype=torch.int64),
        counts,
        offsets,
        torch.tensor([box.box for box in kept], dtype=torch.float64).view(-1, 4),
        torch.tensor([box.image for box in kept], dtype=torch.int64),
        [box.label for box in kept],
    )
