"""Which boxes meet in the mode "ragged"."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Offsets(NamedTuple):
    """[S+1] int64 each: segment s holds boxes1[first[s] : first[s+1]] and boxes2[second[s] : second[s+1]]. `pairs`:
    how many meet in all segments."""

    first: Tensor
    second: Tensor
    pairs: int


def pair_offsets(offsets1: Tensor, offsets2: Tensor) -> Tensor:
    """[S+1]: where the pairs of each segment begin in the result of `box_iou(mode="ragged")`."""
    counts = (offsets1.long().diff() * offsets2.long().diff()).cumsum(0)
    return torch.cat([counts.new_zeros(1), counts])


def ragged_pairs(offsets: Offsets) -> tuple[Tensor, Tensor]:
    """The boxes of each pair, [pairs] each: segment by segment, in each the first box with all of the second."""
    columns, begin = offsets.second.diff(), pair_offsets(offsets.first, offsets.second)
    segment = torch.repeat_interleave(begin.diff(), output_size=offsets.pairs)
    place = torch.arange(offsets.pairs, device=segment.device) - begin[segment]
    return offsets.first[segment] + place // columns[segment], offsets.second[segment] + place % columns[segment]
