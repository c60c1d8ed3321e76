"""Log-probabilities where a model makes its logits: inside its output embedding, for the rows that are wanted.

The embedding is a module of its own, so the hooks that gather its weight (ZeRO 3, FSDP) run as for its own forward, in
the backward pass too, and the host's `model(...)` stays the call that its engine wraps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from univg_kernels import linear_logprob

from .patching import Patch

# What a model may do to its logits after the output embedding: it would do it to log-probabilities.
_AFTER_THE_HEAD = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "output_multiplier",
)


def bare(model: Any) -> Any:
    """The model inside of what engines wrap around it (DDP, DeepSpeed)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def head_of(model: Any) -> Any:
    """The output embedding, a plain linear layer.

    Raises ValueError where it is something else (an adapter), or where the model changes logits after it.
    """
    model = bare(model)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{type(model).__name__}'s output embedding must be a linear layer, got {type(head).__name__}; an adapter "
            "on lm_head is not fused: leave lm_head out of its target_modules, or train without the drop-in"
        )
    if not head.weight.is_floating_point():
        raise ValueError(
            f"{type(model).__name__}'s output embedding must have a floating-point weight, got {head.weight.dtype} "
            f"({type(head).__name__}); leave lm_head out of the quantization, or train without the drop-in"
        )
    text = model.config.get_text_config()
    changed = {name: getattr(text, name, None) for name in _AFTER_THE_HEAD}
    changed = {name: value for name, value in changed.items() if value not in (None, 1.0)}
    if changed:
        raise ValueError(
            f"{type(model).__name__} changes its logits after lm_head ({changed}), which this drop-in does not follow; "
            "train this model without it"
        )
    return head


@contextmanager
def scoring(model: Any, rows: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Iterator[None]:
    """While it lasts, the "logits" of `model(...)` are [1, N, 2]: log-probability and entropy (nats) of N tokens.

    rows: [N] int64, indices into the flattened [batch * length] hidden states that reach the output embedding.
    token_ids: [N] int64, what each row predicts. fp32 (fp64 for fp64 models), differentiable, of the logits divided by
    `temperature`; [batch * length, V] exists nowhere, and no other row is multiplied by the embedding.
    """
    head = head_of(model)

    def forward(hidden: Tensor) -> Tensor:
        wanted = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows)
        scored = linear_logprob(wanted, head.weight, token_ids, bias=head.bias, temperature=temperature)
        return torch.stack(scored, -1)[None]

    with Patch() as patch:
        patch.replace(head, "forward", forward)
        yield


def spread(values: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """[N] -> `shape`, each where `places` [N] says in the flattened result; 0 elsewhere."""
    return values.new_zeros(math.prod(shape)).index_copy(0, places, values).view(*shape)
