"""The door of `linear_grpo_loss`."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from .._autocast import no_autocast
from .._checks import check_ids, check_linear, check_weight_grad
from .._dispatch import Backend, face
from .._linear_head import LinearPolicy, ReferenceHead
from .._row_checks import check_rows
from .._rows import GrpoOutput, RowArguments
from .._softmax import check_vocab
from ..config import GrpoConfig, check_config


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    cu_seqlens: Tensor,
    *,
    bias: Tensor | None = None,
    ref_hidden: Tensor | None = None,
    ref_weight: Tensor | None = None,
    ref_bias: Tensor | None = None,
    weight_grad: Tensor | None = None,
    config: GrpoConfig | None = None,
    backend: Backend = "auto",
    **rows: Unpack[RowArguments],
) -> GrpoOutput:
    """`grpo_loss` of hidden @ weight.T + bias, never holding the logits [N, V].

    The gradients are made in the forward pass, chunk by chunk: three products, and rows without a gradient (masked,
    clipped, zero advantage without KL) are left out of the two backward ones: on the CPU, and in bf16 on CUDA devices
    of compute capability 9 and 10, where their number never comes to the host; other CUDA devices and dtypes multiply
    all rows. On the CPU masked rows are not multiplied at all, and rows whose advantages say beforehand that they will
    have no gradient cost one product, a taller and so faster one. Where rows depend on the rest of their response, a
    chunk holds whole responses (cu_seqlens must be readable by the host: on the CPU); where they depend on the whole
    batch, or the host does not know the lengths, the logits are made twice: four products, unless all rows fit one
    chunk. No weight gradient is made for a weight that does not require one, and none at all under torch.no_grad().
    The first backward pass hands the gradients over; a second one through the same result raises RuntimeError.

    Args:
        hidden: [N, H] fp32|bf16|fp16|fp64, the final hidden states of the scored rows.
        weight: [V, H], bias: [V], of hidden's dtype (inside torch.autocast: of any, cast as by F.linear); under ZeRO-3
            gathered.
        token_ids [N], cu_seqlens [B+1], rows: as in `grpo_loss`.
        ref_hidden: [N, H'], with ref_weight [V, H'] (default: weight) and ref_bias [V]: the reference policy, whose
            log-probabilities are made here by one product more, instead of ref_logp.
        weight_grad: [V, H] fp32 or of weight's dtype: the weight's gradient is added to it in the forward pass, also
            that of a weight that requires none, and weight itself gets none. For an upstream gradient of 1: another
            one raises RuntimeError in the backward pass, on CUDA it is an assertion on the device, after which the
            process cannot use it (scale the loss by denominator instead).
    Returns: GrpoOutput(loss scalar, metrics [len(METRICS)], logp [N]), fp32; the loss is fp64 for fp64 input.
    Raises: ValueError for wrong shapes, dtypes, devices, ids or offsets.
    Note: with fp16 and a gradient scaler give denominator / scale instead of scaling the loss: the gradients are made
        in hidden's dtype for an upstream gradient of 1, where small ones would be 0 before the scaler sees them. In
        half precision the weight's gradient is summed in fp32 over chunks; each chunk's product is rounded first,
        except on CUDA where all rows are multiplied. Extra memory is the gradients and one chunk of logits, as long as
        the longest response at least where rows depend on their response.
    """
    op, config = "linear_grpo_loss", check_config("linear_grpo_loss", config)
    h, w, b = check_linear(op, hidden, weight, bias)
    ids = check_ids(op, token_ids, h.shape[0], check_vocab(op, config.vocab_size, w.shape[0]), h.device)
    checked = check_rows(op, h.shape[0], h.device, config, cu_seqlens, dict(rows))
    reference = None
    if ref_hidden is not None:
        if checked.ref_logp is not None:
            raise ValueError(f"{op}: give either ref_logp or ref_hidden, got both; drop ref_logp")
        reference = ReferenceHead(
            *check_linear(op, ref_hidden, w if ref_weight is None else ref_weight, ref_bias, "ref_")
        )
        if reference.hidden.shape[0] != h.shape[0] or reference.weight.shape[0] != w.shape[0]:
            raise ValueError(
                f"{op}: ref_hidden and ref_weight must have the rows of hidden and weight, {h.shape[0]} and "
                f"{w.shape[0]}, got {reference.hidden.shape[0]} and {reference.weight.shape[0]}"
            )
    elif ref_weight is not None or ref_bias is not None:
        raise ValueError(f"{op}: ref_weight and ref_bias need ref_hidden [N, H'], got None")
    check_weight_grad(op, weight_grad, w)
    policy = LinearPolicy(h, w, b, ids, reference if config.beta else None, weight_grad)
    with no_autocast(h):
        return face(op, h.device, backend).linear_grpo_loss(policy, checked, config)
