"""Fused loss and box ops for grounding with GRPO. Needs torch; Triton and the C++ library `_C` are its fast faces.

Every op has one door here and up to three faces behind it (`reference`, `cpp`, `triton`); `resolve` says which runs.
"""

from ._dispatch import Backend, load_faces, resolve
from ._rows import GroupAdvantage, GrpoOutput, RowArguments
from .box_iou import box_iou, pair_offsets
from .config import GrpoConfig
from .difficulty_weight import difficulty_weight
from .distinct_runs import distinct_runs
from .group_advantage import group_advantage
from .grpo_loss import grpo_loss
from .linear_ce import linear_ce
from .linear_grpo_loss import linear_grpo_loss
from .linear_logprob import linear_logprob
from .matched_iou import MatchedIou, matched_iou
from .metrics import METRICS, combine_metrics, summarize
from .policy_loss import policy_loss
from .scan_boxes import ScannedBoxes, scan_boxes
from .selective_logprob import selective_logprob
from .shared_prefix_attention import SharedPrefix, shared_prefix, shared_prefix_attention

__all__ = [
    "METRICS",
    "Backend",
    "GroupAdvantage",
    "GrpoConfig",
    "GrpoOutput",
    "MatchedIou",
    "RowArguments",
    "ScannedBoxes",
    "SharedPrefix",
    "box_iou",
    "combine_metrics",
    "difficulty_weight",
    "distinct_runs",
    "group_advantage",
    "grpo_loss",
    "linear_ce",
    "linear_grpo_loss",
    "linear_logprob",
    "matched_iou",
    "pair_offsets",
    "policy_loss",
    "resolve",
    "scan_boxes",
    "selective_logprob",
    "shared_prefix",
    "shared_prefix_attention",
    "summarize",
]

load_faces(
    (
        "box_iou",
        "difficulty_weight",
        "group_advantage",
        "grpo_loss",
        "linear_ce",
        "linear_grpo_loss",
        "linear_logprob",
        "policy_loss",
        "selective_logprob",
        "shared_prefix_attention",
    )
)
