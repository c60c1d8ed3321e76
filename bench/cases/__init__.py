"""The table of cases: every op, one file each."""

from __future__ import annotations

from ..shapes import SIZES
from ..work import Case
from . import (
    box_iou,
    completions,
    groups,
    grpo_loss,
    linear_ce,
    linear_grpo_loss,
    linear_logprob,
    matched_iou,
    policy_loss,
    selective_logprob,
    shared_prefix_attention,
)

OPS = (
    grpo_loss, box_iou, matched_iou, completions, linear_grpo_loss, groups, selective_logprob, linear_logprob,
    linear_ce, shared_prefix_attention, policy_loss,
)  # fmt: skip


def all_cases(size: str) -> list[Case]:
    """Of every op at `size` ("cpu", "cuda", "tiny"), the ones with targets first; last the one that compiles
    most, as each loss type is kernels of its own."""
    return [case for op in OPS for case in op.cases(SIZES[size])]
