"""Log-probabilities where a model makes its logits: inside its output embedding, for the rows that are wanted.

The embedding is a module of its own, so the hooks that gather its weight (ZeRO 3, FSDP) run as for its own forward, in
the backward pass too, and the host's `model(...)` stays the call that its engine wraps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from univg_kernels import linear_logprob

from .patching import Patch

_LAST: WeakSet[nn.Module] = WeakSet()  # output embeddings whose output was seen to leave its model as it was


def bare(model: Any) -> Any:
    """The model inside of what engines wrap around it (DDP, DeepSpeed)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def head_of(model: Any) -> Any:
    """The output embedding, a plain linear layer; ValueError where it is something else (an adapter, quantized)."""
    model = bare(model)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        raise ValueError(
            f"{type(model).__name__}'s output embedding must be a plain linear layer, got {type(head).__name__}; an "
            "adapter on lm_head is not fused, nor is a quantized one: leave lm_head out of target_modules and out of "
            "the quantization, or train without the drop-in"
        )
    if not head.weight.is_floating_point():
        raise ValueError(
            f"{type(model).__name__}'s output embedding must have a floating-point weight, got {head.weight.dtype} "
            f"({type(head).__name__}); leave lm_head out of the quantization, or train without the drop-in"
        )
    return head


@contextmanager
def scoring(model: Any, rows: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Iterator[None]:
    """While it lasts, the "logits" of `model(...)` are [1, N, 2]: log-probability and entropy (nats) of N tokens.

    rows: [N] int64, indices into the flattened [batch * length] hidden states that reach the output embedding.
    token_ids: [N] int64, what each row predicts. fp32 (fp64 for fp64 models), differentiable, of the logits divided by
    `temperature`; [batch * length, V] exists nowhere, and no other row is multiplied by the embedding.
    Raises ValueError where a model does something to its logits after the output embedding (a softcap, a scale,
    another dtype), which it would do to log-probabilities: its first call is looked at, which waits for the device.
    """
    head = head_of(model)
    made: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        wanted = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows)
        scored = linear_logprob(wanted, head.weight, token_ids, bias=head.bias, temperature=temperature)
        out = torch.stack(scored, -1)[None]
        made.append(out.detach())
        return out

    def look(module: Any, args: Any, output: Any) -> None:
        _refuse_unless_last(module, made, output.logits)
        if len(rows):
            _LAST.add(head)

    with Patch() as patch:
        patch.replace(head, "forward", forward)
        hook = None if head in _LAST else bare(model).register_forward_hook(look)
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()


def _refuse_unless_last(model: Any, made: list[Tensor], logits: Any) -> None:
    """By what comes out, and not by the settings, for which each family has names of its own."""
    same = len(made) == 1 and isinstance(logits, Tensor)
    same = same and (logits.shape, logits.dtype) == (made[0].shape, made[0].dtype)
    if not (same and torch.equal(logits.nan_to_num(), made[0].nan_to_num())):
        raise ValueError(
            f"{type(model).__name__} changes what its output embedding makes before it returns it as logits (a "
            "softcap, a scale, another dtype), or makes them elsewhere, which this drop-in does not follow; train this "
            "model without it"
        )


def spread(values: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """[N] -> `shape`, each where `places` [N] says in the flattened result; 0 elsewhere."""
    return values.new_zeros(math.prod(shape)).index_copy(0, places, values).view(*shape)
