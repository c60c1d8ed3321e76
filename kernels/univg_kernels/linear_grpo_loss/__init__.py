"""The door of `linear_grpo_loss`."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_ids, check_linear
from .._dispatch import Backend, face
from .._rows import GrpoOutput, check_rows
from ..config import GrpoConfig


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
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
    bias: Tensor | None = None,
    backend: Backend = "auto",
) -> GrpoOutput:
    """`grpo_loss` of hidden @ weight.T + bias, never holding the logits [N, V].

    The gradients are made in the forward pass, chunk by chunk: three products; rows without a gradient (masked,
    clipped, zero advantage without KL) are left out of the two
    backward ones (on the CPU; not yet on CUDA). No weight gradient is made for a
    weight that does not require one, and none at all under torch.no_grad(). The first backward pass hands the
    gradients over; a second one through the same result raises RuntimeError.

    Args:
        hidden: [N, H] fp32|bf16|fp16|fp64, the final hidden states of the scored rows.
        weight: [V, H], bias: [V], of hidden's dtype; under ZeRO-3 gathered.
        The others: as in `grpo_loss`.
    Returns: GrpoOutput(loss scalar, metrics [len(METRICS)], logp [N]), fp32; the loss is fp64 for fp64 input.
    Raises: ValueError for wrong shapes, dtypes, devices, ids or offsets.
    Note: extra memory is the gradients and one chunk of logits.
    """
    op, config = "linear_grpo_loss", config or GrpoConfig()
    h, w, b = check_linear(op, hidden, weight, bias)
    ids = check_ids(op, token_ids, h.shape[0], w.shape[0], h.device)
    rows = check_rows(
        op, h.shape[0], h.device, config, cu_seqlens, rewards, accuracy, cu_groups, advantages, phi,
        old_logp, ref_logp, mask, num_responses,
    )  # fmt: skip
    return face(op, h.device, backend).linear_grpo_loss(h, w, b, ids, rows, config)
