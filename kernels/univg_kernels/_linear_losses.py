"""`linear_grpo_loss`, `linear_ce` and `linear_logprob` around the kernels of a face: which passes over the logits a
call needs. The faces give the kernels; the loops are in _linear_sweeps.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ._autocast import no_autocast
from ._autograd import Scale, attach_gradients, needs_grad
from ._linear_grads import GradientSums
from ._linear_head import LinearPolicy, chunk_rows, make_head, takes_gradient
from ._linear_sweeps import Skipping, forward_sweep, gradient_sweep, plan_chunks, remake_sweep
from ._rows import GrpoOutput, PolicyRows, coupling, math_dtype
from ._softmax import SoftmaxSpec
from .config import GrpoConfig


class PolicyKernels(Protocol):
    """The kernels of one call on its N rows, and what they have found so far."""

    logp: Tensor  # [N]
    a: Tensor  # [N] d loss/d logp
    b: Tensor  # [N] d loss/d entropy

    def reference(self, z: Tensor, start: int, stop: int) -> None:
        """ref_logp of rows [start, stop), from the logits of the reference."""

    def logprob(self, z: Tensor, start: int, stop: int) -> None:
        """logp and entropy of the rows."""

    def policy(self, start: int, stop: int) -> None:
        """Loss, metrics, a and b of rows that have a logp and are whole responses."""

    def backward_(self, z: Tensor, rows: slice | Tensor) -> None:
        """Overwrite the logits of rows that have a and b with their gradient: zeros, unread, where both are 0."""

    def at_once_(self, z: Tensor, start: int, stop: int) -> Tensor:
        """All of it, for rows that do not depend on each other; returns which have a gradient, bool [stop - start]."""

    def outcome(self) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, metrics, logp) of the call."""


def linear_policy_loss(
    policy: LinearPolicy,
    rows: PolicyRows,
    config: GrpoConfig,
    make_kernels: Callable[[PolicyRows], PolicyKernels],
    skipping: Skipping | None,
    scale: Scale,
) -> GrpoOutput:
    """Rows that depend on no others, or on others of their chunk: one pass and three products; else two and four."""
    inputs = (policy.hidden, takes_gradient(policy.weight, policy.weight_grad), policy.bias)
    needs = needs_grad(*inputs)
    with torch.no_grad():
        head, reference = make_head(*inputs, config.vocab_size), None
        n = head.hidden.shape[0]
        if policy.reference is not None:
            reference = make_head(*policy.reference, config.vocab_size)
            rows = rows._replace(ref_logp=head.hidden.new_empty(n, dtype=math_dtype(head.hidden)))
        kernels = make_kernels(rows)

        def logits(out: Tensor, start: int, stop: int) -> Tensor:
            if reference is not None:  # first, in the same buffer
                kernels.reference(reference.logits(out, slice(start, stop)), start, stop)
            return head.logits(out, slice(start, stop))

        def active(start: int, stop: int) -> Tensor:
            return (kernels.a[start:stop] != 0) | (kernels.b[start:stop] != 0)

        def score_whole_responses(z: Tensor, start: int, stop: int) -> Tensor:
            kernels.logprob(z, start, stop)
            kernels.policy(start, stop)
            kernels.backward_(z, slice(start, stop))
            return active(start, stop)

        if any(needs):
            coupled = coupling(rows, config)
            chunks = plan_chunks(head, coupled, rows.host_seqlens)
            several = n > chunk_rows(head)
            sums = GradientSums(head, policy.weight, policy.bias, needs, several, policy.weight_grad)
            if chunks is not None:
                score = kernels.at_once_ if coupled == "row" else score_whole_responses
                gradient_sweep(head, chunks, logits, score, sums, skipping)
            else:
                forward_sweep(head, logits, kernels.logprob)
                kernels.policy(0, n)
                remake_sweep(head, active(0, n), kernels.backward_, sums, skipping)
        elif n:
            forward_sweep(head, logits, kernels.logprob)
            kernels.policy(0, n)
        loss, metrics, logp = kernels.outcome()
    if any(needs):
        once = policy.weight_grad is not None
        loss = attach_gradients("linear_grpo_loss", loss, inputs, sums.result(), scale, unit_upstream=once)
    return GrpoOutput(loss, metrics, logp)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_weight: Tensor,
    vocab_size: int | None,
    weight_grad: Tensor | None,
    logprob: Callable[[Tensor, slice], Tensor],
    gradient_: Callable[[Tensor, slice], Tensor],
    skipping: Skipping | None,
    scale: Scale,
) -> tuple[Tensor, Tensor]:
    """logprob, gradient_: (logits, which rows) -> logp; the second one leaves the gradient in the logits."""
    inputs = (hidden, takes_gradient(weight, weight_grad), bias)
    needs = needs_grad(*inputs)
    with torch.no_grad():
        head = make_head(*inputs, vocab_size)
        logp = torch.empty_like(row_weight)

        def score(z: Tensor, start: int, stop: int) -> Tensor:
            part = slice(start, stop)
            logp[part] = (gradient_ if any(needs) else logprob)(z, part)
            return row_weight[part] != 0

        def logits(out: Tensor, start: int, stop: int) -> Tensor:
            return head.logits(out, slice(start, stop))

        if any(needs):
            chunks = plan_chunks(head, "row", None)
            assert chunks is not None  # rows do not depend on each other
            several = chunks.size < head.hidden.shape[0]
            sums = GradientSums(head, weight, bias, needs, several, weight_grad)
            gradient_sweep(head, chunks, logits, score, sums, skipping)
        else:
            forward_sweep(head, logits, score)
        # A weight of 0 switches a row off, whatever its logits are.
        loss = -torch.where(row_weight != 0, row_weight * logp, 0.0).sum()
    if any(needs):
        once = weight_grad is not None
        loss = attach_gradients("linear_ce", loss, inputs, sums.result(), scale, unit_upstream=once)
    return loss, logp


class LogprobKernels(NamedTuple):
    """logprob: (z, ids, scale, cap) -> (logp, entropy, sum), the last in fp64 as the face's backward_ takes it.
    backward_: (z, ids, sum, entropy, a, b, scale, cap): z becomes its gradient, zeros, unread, where a = b = 0.
    skipping: hidden -> how rows are left out."""

    logprob: Callable[..., tuple[Tensor, Tensor, Tensor]]
    backward_: Callable[..., None]
    skipping: Callable[[Tensor], Skipping | None]


class LinearLogprob(torch.autograd.Function):
    """(logp, entropy) from hidden states; the backward pass makes the logits of the rows it needs once more."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, softmax: SoftmaxSpec,
        kernels: LogprobKernels,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        head, n = make_head(hidden, weight, bias, softmax.vocab_size), hidden.shape[0]
        logp, entropy = (hidden.new_empty(n, dtype=math_dtype(hidden)) for _ in range(2))
        total = torch.empty_like(logp, dtype=torch.float64)

        def score(z: Tensor, start: int, stop: int) -> None:
            part = slice(start, stop)
            logp[part], entropy[part], total[part] = kernels.logprob(z, ids[part], softmax.scale, softmax.cap)

        forward_sweep(head, lambda out, start, stop: head.logits(out, slice(start, stop)), score)
        ctx.save_for_backward(hidden, weight, bias, ids, total, entropy)
        ctx.softmax, ctx.kernels = softmax, kernels
        return logp, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        with no_autocast(grad_logp):
            return LinearLogprob._backward(ctx, grad_logp, grad_entropy)

    @staticmethod
    def _backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, total, entropy = ctx.saved_tensors
        softmax, kernels = ctx.softmax, ctx.kernels
        head = make_head(hidden, weight, bias, softmax.vocab_size)
        sums = GradientSums(head, weight, bias, ctx.needs_input_grad[:3], chunk_rows(head) < hidden.shape[0])

        def backward_(z: Tensor, rows: Tensor) -> None:
            saved = (t[rows] for t in (ids, total, entropy, grad_logp, grad_entropy))
            kernels.backward_(z, *saved, softmax.scale, softmax.cap)

        active = (grad_logp != 0) | (grad_entropy != 0)
        remake_sweep(head, active, backward_, sums, kernels.skipping(hidden))
        return (*sums.result(), None, None, None)
