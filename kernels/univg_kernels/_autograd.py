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


class Gradients:
    """Gradients of a loss for an upstream gradient of 1, waiting for the backward pass, which takes them
    once."""

    def __init__(self, op: str, grads: Sequence[Tensor | None], scale: Scale):
        self.op, self.scale = op, scale
        self.grads: Sequence[Tensor | None] | None = grads

    def take(self, upstream: Tensor) -> Sequence[Tensor | None]:
        """The gradients times `upstream`, multiplied in place."""
        if self.grads is None:
            raise RuntimeError(
                f"{self.op}: second backward pass through one result; its gradients were made in the "
                f"forward pass and "
                "the first backward pass has used them up: call the op again for another one"
            )
        grads, self.grads = self.grads, None
        for g in grads:
            if g is not None:
                self.scale(g, upstream)
        return grads


class OverwrittenLogits(Gradients):
    """The gradient that lies where the logits were. Every other use of the logits makes the backward pass
    raise:

    - what was computed from them before and saved them: autograd's own version counter sees the overwriting;
    - what writes to them between forward and backward, such as a second loss in place: their version has
    moved on;
    - what else sends a gradient to them: the sum of two gradients is not the tensor that was handed over.
    """

    def __init__(self, op: str, logits: Tensor, scale: Scale):
        self.buffer = logits.detach()
        super().__init__(op, [self.buffer], scale)
        self.version = self.buffer._version
        logits.register_hook(self._check_arriving)

    def take(self, upstream: Tensor) -> Sequence[Tensor | None]:
        self._check(self.buffer._version == self.version)
        grads = super().take(upstream)
        self.version = self.buffer._version
        return grads

    def _check_arriving(self, total: Tensor) -> None:
        alone = self.grads is None and total.data_ptr() == self.buffer.data_ptr()
        self._check(alone and self.buffer._version == self.version)

    def _check(self, alone: bool) -> None:
        if not alone:
            raise RuntimeError(
                f"{self.op}: the logits were overwritten with their gradient, and something else used them, "
                f"too; "
                "pass inplace=False to keep them"
            )


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: Gradients, loss: Tensor, *inputs: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        return loss.view_as(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.gradients.take(upstream))


def attach_gradients(loss: Tensor, inputs: Sequence[Tensor | None], gradients: Gradients) -> Tensor:
    """Make `loss` differentiable by `inputs`: d loss/d inputs[i] = gradients.grads[i] (None: no gradient)."""
    return _WithGradients.apply(gradients, loss, *inputs)
