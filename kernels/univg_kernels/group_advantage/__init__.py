"""The door of `group_advantage`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import FLOATS, check_offsets, check_tensor, values_at_hand
from .._dispatch import Backend, face
from .._row_checks import settle_offsets
from .._rows import GroupAdvantage, math_dtype
from ..config import GrpoConfig, check_config


def group_advantage(
    rewards: Tensor,
    cu_groups: Tensor,
    *,
    accuracy: Tensor | None = None,
    config: GrpoConfig | None = None,
    backend: Backend = "auto",
) -> GroupAdvantage:
    """Advantage of each response within its group, A = (r - mean) / (std + advantage_eps), and its group's phi.

    std has ddof 1. A group of one has std 0 and A = 0 (its reward itself, if not center_singletons); a group of equal
    rewards has A = 0 exactly; groups may be empty. NaN or an infinity stays in its group, unless scale_rewards="batch".
    phi = difficulty_weight(mean accuracy of the group); 1 without `accuracy`.

    Args:
        rewards: [B] floating point. accuracy: [B] floating point, 0 to 1 (IoU), or None.
        cu_groups: [K+1] int32|int64, offsets of the groups in the responses.
        config: scale_rewards, advantage_eps, center_singletons, difficulty, difficulty_power, normalize_difficulty.
    Returns: GroupAdvantage(advantages [B], phi [B], mean [K], std [K], accuracy_mean [K]), fp32
        (fp64 for fp64 rewards). accuracy_mean is 0 without accuracy.
    Raises: ValueError for wrong shapes, dtypes or offsets.
    Source: DeepSeekMath (arXiv 2402.03300) for A; UniVG-R1 for phi.
    """
    op = "group_advantage"
    r = check_tensor(op, "rewards", rewards, (None,), FLOATS)
    cu = check_offsets(op, "cu_groups", cu_groups, r.numel(), r.device, "responses B")
    if not values_at_hand(cu):
        cu, sound = settle_offsets(op, "cu_groups", cu, r.numel())
        r = torch.where(sound, r, torch.nan)
    acc = None
    if accuracy is not None:
        acc = check_tensor(op, "accuracy", accuracy, (r.numel(),), FLOATS, r.device, "one value per response")
        acc = acc.detach().to(math_dtype(r))
    config = check_config(op, config)
    return face(op, r.device, backend).group_advantage(r.detach().to(math_dtype(r)), cu, acc, config)
