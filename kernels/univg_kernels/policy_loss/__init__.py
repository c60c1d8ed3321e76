"""The door of `policy_loss`."""

from __future__ import annotations

from torch import Tensor

from .._checks import FLOATS, check_tensor
from .._dispatch import Backend, face
from .._rows import GrpoOutput, check_rows
from ..config import GrpoConfig


def policy_loss(
    logp: Tensor,
    cu_seqlens: Tensor,
    *,
    rewards: Tensor | None = None,
    accuracy: Tensor | None = None,
    cu_groups: Tensor | None = None,
    advantages: Tensor | None = None,
    phi: Tensor | None = None,
    old_logp: Tensor | None = None,
    ref_logp: Tensor | None = None,
    mask: Tensor | None = None,
    num_responses: float | Tensor | None = None,
    config: GrpoConfig | None = None,
    entropy: Tensor | None = None,
    backend: Backend = "auto",
) -> GrpoOutput:
    """The loss of `grpo_loss` from log-probabilities that the host has made itself.

    Args:
        logp: [N] fp32|fp64|bf16|fp16, log pi(token), temperature already applied; differentiated.
        entropy: [N] or None, nats, for the metric only (0 without it).
        The others: as in `grpo_loss`.
    Returns: GrpoOutput(loss, metrics, logp).
    Raises: ValueError for wrong shapes, dtypes, devices or offsets.
    """
    op, config = "policy_loss", config or GrpoConfig()
    lp = check_tensor(op, "logp", logp, (None,), FLOATS)
    h = None if entropy is None else check_tensor(op, "entropy", entropy, (lp.numel(),), FLOATS, lp.device).detach()
    rows = check_rows(
        op, lp.numel(), lp.device, config, cu_seqlens, rewards, accuracy, cu_groups, advantages, phi,
        old_logp, ref_logp, mask, num_responses,
    )  # fmt: skip
    return face(op, lp.device, backend).policy_loss(lp, h, rows, config)
