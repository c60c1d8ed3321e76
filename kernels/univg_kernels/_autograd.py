"""Losses whose gradients are made in the forward pass: shared by the C++ and the Triton faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Scale = Callable[[Tensor, Tensor], None]  # (gradient, upstream scalar): multiply the gradient in place


def scale_on_host(grad: Tensor, upstream: Tensor) -> None:
    """Multiply in place, unless by 1: that would be a pass over [N, V] for nothing. For CPU tensors."""
    factor = upstream.item()
    if factor != 1.0:
        grad.mul_(factor)


def needs_grad(*inputs: Tensor | None) -> tuple[bool, ...]:
    """Which inputs autograd wants a gradient of; all False under torch.no_grad()."""
    on = torch.is_grad_enabled()
    return tuple(on and t is not None and t.requires_grad for t in inputs)


class _Gradients:
    """Gradients of a loss that is multiplied by 1, waiting for the backward pass, which takes them once."""

    def __init__(self, op: str, grads: Sequence[Tensor | None], scale: Scale):
        self.op, self.scale = op, scale
        self.grads: Sequence[Tensor | None] | None = grads
        self.versions = [None if g is None else g._version for g in grads]

    def take(self, upstream: Tensor) -> Sequence[Tensor | None]:
        if self.grads is None:
            raise RuntimeError(
                f"{self.op}: second backward pass through one result; its gradients were made in the forward pass and "
                "the first backward pass has used them up: call the op again for another one"
            )
        if [None if g is None else g._version for g in self.grads] != self.versions:
            raise RuntimeError(
                f"{self.op}: the logits, which held their own gradient, were modified between the forward and the "
                "backward pass; pass inplace=False to keep logits and gradient apart"
            )
        grads, self.grads = self.grads, None
        for g in grads:
            if g is not None:
                self.scale(g, upstream)
        return grads


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: _Gradients, loss: Tensor, *inputs: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        return loss.view_as(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.gradients.take(upstream))


def attach_gradients(
    op: str,
    loss: Tensor,
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    scale: Scale = scale_on_host,
) -> Tensor:
    """Make `loss` differentiable by `inputs`, with d loss/d inputs[i] = grads[i] (None: no gradient).

    The first backward pass scales the gradients in place and gives them away; a second one raises RuntimeError.
    """
    return _WithGradients.apply(_Gradients(op, grads, scale), loss, *inputs)


def guard_overwritten(op: str, logits: Tensor, gradient: Tensor) -> None:
    """Make the backward pass raise when something else, too, differentiated through the overwritten logits.

    `gradient` is logits.detach() after the gradient was written into it. Uses that had saved the logits before are
    caught by autograd's version counter; this hook sees the rest: the sum of several gradients is a new tensor, and
    a later overwriting shows in the version.
    """
    version = gradient._version

    def check(total: Tensor) -> None:
        # One more version is the scaling by the upstream gradient.
        if total.data_ptr() != gradient.data_ptr() or gradient._version > version + 1:
            raise RuntimeError(
                f"{op}: the logits were overwritten with their gradient, and something else used them as well; "
                "pass inplace=False"
            )

    logits.register_hook(check)
