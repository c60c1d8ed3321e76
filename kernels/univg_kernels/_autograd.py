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
    """Gradients for an upstream gradient of 1, waiting for the backward pass, which takes them once."""

    def __init__(self, op: str, grads: Sequence[Tensor | None], scale: Scale):
        self.op, self.scale = op, scale
        self.grads: Sequence[Tensor | None] | None = grads

    def take(self, upstream: Tensor) -> Sequence[Tensor | None]:
        """The gradients times `upstream`, multiplied in place."""
        if self.grads is None:
            raise RuntimeError(
                f"{self.op}: second backward pass through one result; its gradients were made in the forward pass "
                "and the first backward pass has used them up: call the op again for another one"
            )
        grads, self.grads = self.grads, None
        for g in grads:
            if g is not None:
                self.scale(g, upstream)
        return grads


class _OverwrittenInput(_Gradients):
    """The gradient of one input, lying where the input was. Any other use of the input makes backward raise:

    - what was computed from it before and saved it: autograd's own version counter sees the overwriting;
    - what writes to it between forward and backward, such as a second loss in place: its version has moved on;
    - what else sends a gradient to it: the sum of two gradients is not the tensor that was handed over.
    """

    def __init__(self, op: str, tensor: Tensor, grad: Tensor, scale: Scale):
        super().__init__(op, [grad], scale)
        self.buffer, self.version = grad, grad._version
        tensor.register_hook(self._check_arriving)

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
                f"{self.op}: the logits were overwritten with their gradient, and something else used them, too; "
                "pass inplace=False to keep them"
            )


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: _Gradients, loss: Tensor, *inputs: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        return loss.view_as(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.gradients.take(upstream))


class _WithSavedGradients(torch.autograd.Function):
    """The same for torch.compile, which follows neither objects with a state nor addresses."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *inputs_and_grads: Tensor | None) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*inputs_and_grads[count:])
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if g is None else (g * upstream).to(g.dtype) for g in ctx.saved_tensors)
        return (None, None, *scaled, *[None] * ctx.count)


def attach_gradients(
    op: str,
    loss: Tensor,
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    scale: Scale = scale_on_host,
) -> Tensor:
    """Make `loss` differentiable by `inputs`, with d loss/d inputs[i] = grads[i] (None: no gradient).

    The first backward pass multiplies the gradients in place by the upstream gradient and gives them away; a second
    one raises RuntimeError. A single input whose gradient was written over it is recognised by its address and
    guarded: whatever else uses that input raises in the backward pass. Writes that went past autograd must have
    been told to it (torch.autograd.graph.increment_version) before this call.
    """
    if torch.compiler.is_compiling():
        return _WithSavedGradients.apply(loss, len(inputs), *inputs, *grads)
    (tensor, *others), (grad, *_) = inputs, grads
    if not others and tensor is not None and grad is not None and _same_memory(tensor, grad):
        return _WithGradients.apply(_OverwrittenInput(op, tensor, grad, scale), loss, tensor)
    return _WithGradients.apply(_Gradients(op, grads, scale), loss, *inputs)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.numel() > 0 and a.data_ptr() == b.data_ptr()
