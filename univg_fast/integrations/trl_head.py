"""What stands in for the chunked log-probs inside of TRL's fused head, and turns them into the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from univg_kernels import METRICS, GrpoOutput, linear_grpo_loss, linear_logprob

from .trl_rows import Batch

Scores = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
KNOWN = {"log_probs", "entropy"}  # of the outputs that TRL's head may be asked for


class _Load(torch.autograd.Function):
    """Log-probs [N] that carry the loss: what comes back for the first of them is the gradient of the loss.

    The loss must leave the model through its output, because that is where DDP, FSDP and ZeRO hang their hooks.
    """

    @staticmethod
    def forward(ctx: Any, logp: Tensor, loss: Tensor) -> Tensor:
        return logp.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad[:1].sum()


class _Unload(torch.autograd.Function):
    """The loss's value, and what its gradient goes to: every log-prob that `_Load` made."""

    @staticmethod
    def forward(ctx: Any, logps: Tensor, loss: Tensor) -> Tensor:
        ctx.like = logps
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.like.dtype).expand(ctx.like.shape), None


class Head:
    """`apply` has the arguments of TRL's `ChunkedLogProbFunction`. With a `batch` it makes the loss, else log-probs.

    high_entropy: (entropies [B, T], mask [B, T]) -> bool [B, T], the host's choice over all ranks.
    """

    def __init__(self, theirs: Any, high_entropy: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        self.theirs, self.high_entropy = theirs, high_entropy
        self.batch: Batch | None = None
        self.out: GrpoOutput | None = None
        self.bonus: Tensor | None = None  # the mean entropy that the bonus is about
        self.loaded: Tensor | None = None  # the model's log-probs [B, T], which carry the loss

    def begin(self, batch: Batch) -> None:
        self.end()
        self.batch = batch

    def end(self) -> None:
        self.batch = self.out = self.bonus = self.loaded = None

    @torch.compiler.disable
    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"),
    ) -> Scores:
        """hidden [N, H], weight [V, H], bias [V], targets [N] int64 -> five of [N] fp32, None where not asked for."""
        softmax = {"temperature": temperature, "logit_scale": logit_scale, "softcap": final_logit_softcapping}
        if not torch.is_autocast_enabled(hidden.device.type):  # TRL's head takes the states' dtype for all
            weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        if self.batch is not None:
            return self._loss(self.batch, hidden, weight, bias, targets, softmax)
        if not set(outputs) <= KNOWN:  # SFT's and DPO's statistics
            more = (temperature, chunk_size, final_logit_softcapping, logit_scale, outputs)
            return self.theirs.apply(hidden, weight, bias, targets, *more)
        # A view keeps the gathered weight for the backward pass, whatever ZeRO-3 does to the parameter until then.
        weight, bias = weight.view_as(weight), None if bias is None else bias.view_as(bias)
        logp, entropy = linear_logprob(hidden, weight, targets, bias=bias, **softmax)  # type: ignore[arg-type]
        return logp, entropy if "entropy" in outputs else None, None, None, None

    def _loss(
        self,
        batch: Batch,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softmax: dict[str, Any],
    ) -> Scores:
        cu_seqlens, rows = batch.cu_seqlens(), batch.arguments()
        if hidden.shape[0] != int(cu_seqlens[-1]):
            raise ValueError(
                f"TRL's head scores {hidden.shape[0]} tokens, expected the {int(cu_seqlens[-1])} of completion_mask; "
                "prompt-learning PEFT methods (virtual tokens) are not supported by this drop-in: use LoRA"
            )
        rows = {k: v.to(hidden.device) if isinstance(v, Tensor) else v for k, v in rows.items()}  # type: ignore
        config = replace(batch.config, **softmax)
        entropy = None
        if config.top_entropy_quantile < 1:
            with torch.no_grad():
                entropy = linear_logprob(hidden, weight, targets, bias=bias, **softmax)[1].float()
            rows["entropy_threshold"] = self._threshold(batch, entropy)
        self.out = linear_grpo_loss(hidden, weight, targets, cu_seqlens, bias=bias, config=config, **rows)
        if entropy is None:  # its mean is all that TRL's metrics and its bonus know
            entropy = _mean(self.out.metrics, "entropy_sum").expand(hidden.shape[0])
            self.bonus = entropy.mean() if len(entropy) else entropy.sum()
        return _Load.apply(self.out.logp, self.out.loss), entropy, None, None, None

    def _threshold(self, batch: Batch, entropy: Tensor) -> Tensor:
        """Between the lowest entropy that the host keeps and the highest that it drops."""
        assert self.high_entropy is not None
        mask = batch.mask.to(entropy.device)
        padded = entropy.new_zeros(mask.shape).masked_scatter(batch.present.to(entropy.device), entropy)
        kept = self.high_entropy(padded, mask)
        self.bonus = (padded * kept).sum() / kept.sum().clamp(min=1)
        largest = torch.finfo(entropy.dtype).max / 4
        low = torch.where(mask & ~kept, padded, -1.0).amax()
        return (low + torch.where(kept, padded, largest).amin()) / 2

    def take(self) -> tuple[Tensor, Tensor]:
        """(the loss, differentiable through the model's output; the mean entropy of the bonus)."""
        if self.out is None or self.loaded is None or self.bonus is None:
            raise ValueError(
                "TRL's model made no log-probs through its fused head, expected one call of it in each loss; the "
                "trainer's model must have been given one by TRL's add_fused_lm_head, as GRPOTrainer does"
            )
        return _Unload.apply(self.loaded, self.out.loss.detach()), self.bonus


def _mean(metrics: Tensor, name: str) -> Tensor:
    return metrics[METRICS.index(name)] / metrics[METRICS.index("num_tokens")].clamp(min=1)
