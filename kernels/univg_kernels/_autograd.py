"""Losses whose gradients are made in the forward pass: shared by the C++ and the Triton faces."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch._C._autograd import CreationMeta, _get_creation_meta

T = TypeVar("T")
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

    def __init__(self, op: str, grads: Sequence[Tensor | None], scale: Scale, unit_upstream: bool = False):
        self.op, self.scale, self.unit_upstream = op, scale, unit_upstream
        self.grads: Sequence[Tensor | None] | None = grads

    def take(self, upstream: Tensor) -> Sequence[Tensor | None]:
        """The gradients times `upstream`, multiplied in place."""
        if self.grads is None:
            raise RuntimeError(
                f"{self.op}: second backward pass through one result; its gradients were made in the forward pass "
                "and the first backward pass has used them up: call the op again for another one"
            )
        if self.unit_upstream:
            check_unit_upstream(self.op, upstream)
        grads, self.grads = self.grads, None
        for g in grads:
            if g is not None:
                self.scale(g, upstream)
        return grads


def check_unit_upstream(op: str, upstream: Tensor) -> None:
    """Raise RuntimeError. On CUDA, where nobody waits for the device, it is an assertion of the device: the next call
    that does wait raises, and the process cannot use the device any more."""
    torch._assert_async(
        (upstream == 1).all(),
        f"{op}: with weight_grad the loss must be differentiated with an upstream gradient of 1, as the weight's "
        "gradient was added in the forward pass; scale the loss by denominator instead of multiplying or dividing it",
    )


class _OverwrittenInput(_Gradients):
    """The gradient of one input, lying where the input was. Any other use of the input makes backward raise:

    - what was computed from it, or from what shares its memory, and saved it: autograd's own version counter sees the
      overwriting, which is counted here;
    - what writes to it between forward and backward, such as a second loss in place: its version has moved on;
    - what else sends a gradient to it, or to the tensor it is merely another shape of: the sum of two gradients is not
      the tensor that was handed over.
    """

    living: ClassVar[weakref.WeakSet[_OverwrittenInput]] = weakref.WeakSet()

    def __init__(self, op: str, grad: Tensor, scale: Scale):
        super().__init__(op, [grad], scale)
        self.buffer, self.version = grad, grad._version
        self.living.add(self)

    def attach(self, loss: Tensor, tensor: Tensor) -> Tensor:
        # First the edge to the input's node as it is now: counting the overwriting of a view gives it another node,
        # whose backward would make and fill a tensor of the size of the base. That one is for later uses, which raise.
        node = tensor.grad_fn  # asked for before register_hook, which crashes on a view that is due for another node
        loss = _WithGradients.apply(self, loss, tensor)
        tensor.register_hook(self._check_arriving)
        base = tensor._base
        if base is not None and base.requires_grad and _only_reshapes(node, base.grad_fn):
            base.register_hook(self._check_arriving)
        # Of several views that one call made (unbind, split) torch lets none be overwritten: there the hooks must do.
        if not tensor._is_view() or _get_creation_meta(tensor) == CreationMeta.DEFAULT:
            self._write(lambda: torch.autograd.graph.increment_version(self.buffer))
        if tensor.grad_fn is not None and tensor.grad_fn is not node:
            tensor.grad_fn.register_prehook(lambda _: self._check(False))
        return loss

    def take(self, upstream: Tensor) -> Sequence[Tensor | None]:
        self._check(self.buffer._version == self.version)
        return self._write(lambda: super(_OverwrittenInput, self).take(upstream))

    def _write(self, write: Callable[[], T]) -> T:
        """Write to the buffer; those who wait in other parts of its storage then expect the version it has got."""
        before = self.buffer._version
        result = write()
        for other in self.living:
            if other is self or _side_by_side(other.buffer, self.buffer):
                other.version += self.buffer._version - before
        return result

    def _check_arriving(self, total: Tensor) -> None:
        alone = self.grads is None and total.data_ptr() == self.buffer.data_ptr()
        self._check(alone and self.buffer._version == self.version)

    def _check(self, alone: bool) -> None:
        if not alone:
            raise RuntimeError(
                f"{self.op}: the logits were overwritten with their gradient, and something else used them, too; "
                "pass inplace=False to keep them"
            )


_RESHAPES = ("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "AliasBackward")


def _only_reshapes(node: Any, base: Any) -> bool:
    """Whether a gradient comes from `node` to the node `base` as it is, in another shape."""
    while node is not None and node is not base:
        if not node.name().startswith(_RESHAPES):
            return False
        node = node.next_functions[0][0]
    return node is not None


def _side_by_side(a: Tensor, b: Tensor) -> bool:
    """Whether both are in one storage and do not overlap."""

    def span(x: Tensor) -> tuple[int, int]:
        first = int(x.storage_offset())
        return first, first + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))

    (a_first, a_last), (b_first, b_last) = span(a), span(b)
    one = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return one and (a_last < b_first or b_last < a_first)


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
    """Gradients that stay, for small ones, and for torch.compile, which follows neither objects with a state nor
    addresses."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, op: str, unit_upstream: bool, count: int, *inputs_and_grads: Tensor | None
    ) -> Tensor:
        ctx.op, ctx.unit_upstream, ctx.count = op, unit_upstream, count
        ctx.save_for_backward(*inputs_and_grads[count:])
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.unit_upstream:
            check_unit_upstream(ctx.op, upstream)
        scaled = (None if g is None else (g * upstream).to(g.dtype) for g in ctx.saved_tensors)
        return (None, None, None, None, *scaled, *[None] * ctx.count)


def attach_gradients(
    op: str,
    loss: Tensor,
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    scale: Scale = scale_on_host,
    *,
    unit_upstream: bool = False,
    reusable: bool = False,
) -> Tensor:
    """Make `loss` differentiable by `inputs`, with d loss/d inputs[i] = grads[i] (None: no gradient).

    The first backward pass multiplies the gradients in place by the upstream gradient and gives them away; a second
    one raises RuntimeError, unless they are `reusable`: then each makes a copy. A backward pass raises, too, whose
    upstream gradient is not 1, if unit_upstream is asked for. A single input whose gradient was written over it is
    recognised by its address, the overwriting is counted by autograd's version counter, and whatever else uses that
    input raises in the backward pass.
    """
    if reusable or torch.compiler.is_compiling():
        return _WithSavedGradients.apply(loss, op, unit_upstream, len(inputs), *inputs, *grads)
    (tensor, *others), (grad, *_) = inputs, grads
    if not others and tensor is not None and grad is not None and _same_memory(tensor, grad):
        return _OverwrittenInput(op, grad, scale).attach(loss, tensor)
    return _WithGradients.apply(_Gradients(op, grads, scale, unit_upstream), loss, *inputs)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.numel() > 0 and a.data_ptr() == b.data_ptr()
