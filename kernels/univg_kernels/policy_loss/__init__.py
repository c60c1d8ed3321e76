"""The door of `policy_loss`."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from .._checks import FLOATS, check_tensor
from .._dispatch import Backend, face
from .._row_checks import check_rows
from .._rows import GrpoOutput, RowArguments
from ..config import GrpoConfig, check_config


def policy_loss(
    logp: Tensor,
    cu_seqlens: Tensor,
    *,
    entropy: Tensor | None = None,
    config: GrpoConfig | None = None,
    backend: Backend = "auto",
    **rows: Unpack[RowArguments],
) -> GrpoOutput:
    """The loss of `grpo_loss` from log-probabilities that the host has made itself.

    Args:
        logp: [N] fp32|bf16|fp16|fp64, log pi(token), temperature already applied; differentiated.
        cu_seqlens: [B+1] int32|int64, offsets of the responses in the rows; responses may be empty.
        entropy: [N] or None, nats: for the bonus (differentiated then), the entropy mask and the metric.
        rows: what they are worth, see `RowArguments`.
    Returns: GrpoOutput(loss, metrics, logp).
    Raises: ValueError for wrong shapes, dtypes, devices or offsets (on CUDA wrong offsets make the loss NaN).
    """
    op, config = "policy_loss", check_config("policy_loss", config)
    lp = check_tensor(op, "logp", logp, (None,), FLOATS)
    h = None if entropy is None else check_tensor(op, "entropy", entropy, (lp.numel(),), FLOATS, lp.device)
    checked = check_rows(op, lp.numel(), lp.device, config, cu_seqlens, dict(rows))
    masks = config.top_entropy_quantile < 1 or checked.entropy_threshold is not None
    if h is None and (masks or config.entropy_coef != 0):
        raise ValueError(
            f"{op}: entropy must be given for entropy_coef, top_entropy_quantile and entropy_threshold, got None; "
            "selective_logprob returns it"
        )
    return face(op, lp.device, backend).policy_loss(lp, h, checked, config)
