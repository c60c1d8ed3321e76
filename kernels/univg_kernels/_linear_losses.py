"""`linear_grpo_loss`, `linear_ce` and `linear_logprob` around the kernels of a face: which passes over the logits a
call needs. The faces give the kernels; the loops are in _linear_sweeps.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ._autocast import no_autocast
from ._autograd import Scale, attach_gradients, needs_grad
from ._linear_forward import Statistics
from ._linear_grads import GradientSums
from ._linear_head import Head, LinearPolicy, Rows, chunk_rows, make_head, takes_gradient
from ._linear_sweeps import Skipping, gradient_sweep, plan_chunks, remake_sweep
from ._rows import GrpoOutput, PolicyRows, coupling, weight_of_rows
from ._softmax import SoftmaxSpec
from .config import GrpoConfig


class PolicyKernels(Protocol):
    """The kernels of one call on its N rows, and what they have found so far. part: which rows."""

    a: Tensor  # [N] d loss/d logp of rows that `policy` has seen, 0 of others
    b: Tensor  # [N] d loss/d entropy

    def keep(self, statistics: Statistics, part: Rows) -> None:
        """Log-probability and entropy of the rows."""

    def logprob(self, z: Tensor, part: Rows) -> Statistics:
        """Those, from the logits."""

    def policy(self, part: Rows) -> None:
        """Loss, metrics, a and b of rows that have a logp and are whole responses."""

    def backward_(self, z: Tensor, part: Rows) -> None:
        """Overwrite the logits of rows that have a and b with their gradient: zeros, unread, where both are 0."""

    def at_once_(self, z: Tensor, part: Rows) -> Tensor:
        """All of it, for rows that do not depend on each other; returns which have a gradient, bool [m]."""

    def foresee(self) -> tuple[Tensor | None, Tensor | None]:
        """(rows that may have a gradient, ascending, None for all; rows that count and will have none as far as one can
        tell before their log-probabilities are known, None for no such rows). Whole responses, if rows depend on
        theirs."""

    def outcome(self) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, metrics, logp) of the call."""


def linear_policy_loss(
    policy: LinearPolicy,
    rows: PolicyRows,
    config: GrpoConfig,
    forward: Callable[[Head, Rows], Statistics],
    make_kernels: Callable[[PolicyRows], PolicyKernels],
    skipping: Skipping | None,
    scale: Scale,
) -> GrpoOutput:
    """Rows that depend on no others, or on others of their chunk: one pass and three products; else two and four.

    Of rows that are foreseen to have no gradient (zero advantage without KL) only the log-probabilities are made.
    forward: (head, rows) -> their Statistics.
    """
    inputs = (policy.hidden, takes_gradient(policy.weight, policy.weight_grad), policy.bias)
    needs = needs_grad(*inputs)
    with torch.no_grad():
        head = make_head(*inputs, config.vocab_size)
        n = head.hidden.shape[0]
        every = slice(0, n)
        if policy.reference is not None:
            rows = rows._replace(ref_logp=forward(make_head(*policy.reference, config.vocab_size), every)[0])
        kernels = make_kernels(rows)

        def active(part: Rows) -> Tensor:
            return (kernels.a[part] != 0) | (kernels.b[part] != 0)

        def score_whole_responses(z: Tensor, part: Rows) -> Tensor:
            kernels.keep(kernels.logprob(z, part), part)
            kernels.policy(part)
            kernels.backward_(z, part)
            return active(part)

        coupled, chunks = coupling(rows, config), None
        quiet: Rows | None = every
        if any(needs):
            live, foreseen = kernels.foresee()
            chunks = plan_chunks(head, live, coupled, rows.host_seqlens)
            quiet = every if chunks is None else foreseen
            sums = GradientSums(head, policy.weight, policy.bias, needs, n > chunk_rows(head), policy.weight_grad)
        if quiet is not None and n:
            kernels.keep(forward(head, quiet), quiet)
            kernels.policy(quiet)
            if any(needs):
                remake_sweep(head, active(every), kernels.backward_, sums, skipping)
        if chunks is not None:
            score = kernels.at_once_ if coupled == "row" else score_whole_responses
            gradient_sweep(head, chunks, score, sums, skipping)
        loss, metrics, logp = kernels.outcome()
    if any(needs):
        once = policy.weight_grad is not None
        loss = attach_gradients("linear_grpo_loss", loss, inputs, sums.result(), scale, unit_upstream=once)
    return GrpoOutput(loss, metrics, logp)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_weight: Tensor | float,
    vocab_size: int | None,
    weight_grad: Tensor | None,
    forward: Callable[[Head], Statistics],
    gradient_: Callable[[Tensor, Rows, Tensor], Tensor],
    skipping: Skipping | None,
    scale: Scale,
) -> tuple[Tensor, Tensor]:
    """gradient_: (logits, which rows, their weights) -> logp; it leaves the gradient in the logits."""
    inputs = (hidden, takes_gradient(weight, weight_grad), bias)
    needs = needs_grad(*inputs)
    all_count = not (isinstance(row_weight, Tensor) or torch.compiler.is_compiling() or row_weight == 0)
    with torch.no_grad():
        head, weights = make_head(*inputs, vocab_size), weight_of_rows(row_weight, hidden)
        logp = torch.empty_like(weights)

        def score(z: Tensor, part: Rows) -> Tensor | None:
            logp[part] = gradient_(z, part, weights[part])
            return None if all_count else weights[part] != 0

        if any(needs):
            chunks = plan_chunks(head, None, "row", None)
            assert chunks is not None  # rows do not depend on each other
            several = chunks.size < head.hidden.shape[0]
            sums = GradientSums(head, weight, bias, needs, several, weight_grad)
            gradient_sweep(head, chunks, score, sums, skipping)
        else:
            logp = forward(head)[0]
        # A weight of 0 switches a row off, whatever its logits are.
        loss = -torch.where(weights != 0, weights * logp, 0.0).sum()
    if any(needs):
        once = weight_grad is not None
        loss = attach_gradients("linear_ce", loss, inputs, sums.result(), scale, unit_upstream=once)
    return loss, logp


class LogprobKernels(NamedTuple):
    """forward: (head, ids, scale, cap) -> Statistics, whose total is what the face's backward_ takes.
    backward_: (z, ids, total, entropy, a, b, scale, cap): z becomes its gradient, zeros, unread, where a = b = 0.
    skipping: hidden -> how rows are left out."""

    forward: Callable[[Head, Tensor, float, float], Statistics]
    backward_: Callable[..., None]
    skipping: Callable[[Tensor], Skipping | None]


class LinearLogprob(torch.autograd.Function):
    """(logp, entropy) from hidden states; the backward pass makes the logits of the rows it needs once more."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, softmax: SoftmaxSpec,
        kernels: LogprobKernels,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        head = make_head(hidden, weight, bias, softmax.vocab_size)
        logp, entropy, total = kernels.forward(head, ids, softmax.scale, softmax.cap)
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

        def backward_(z: Tensor, rows: Rows) -> None:
            saved = (t[rows] for t in (ids, total, entropy, grad_logp, grad_entropy))
            kernels.backward_(z, *saved, softmax.scale, softmax.cap)

        active = (grad_logp != 0) | (grad_entropy != 0)
        remake_sweep(head, active, backward_, sums, kernels.skipping(hidden))
        return (*sums.result(), None, None, None)
