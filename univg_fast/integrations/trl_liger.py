"""The releases of TRL whose `use_liger_kernel=True` hands the loss to an object: Liger's, or since 1.11 a copy of it.

TRL calls it inside of the model's forward, with the head's weight gathered (ZeRO-3), on the last hidden states of the
completions. Ours has the same call, the same scalar and the same metrics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from univg_kernels import GrpoConfig, linear_grpo_loss

from .patching import Patch
from .trl_rows import LOSSES, SAME_NAME, find_phi, refuse_own
from .versions import require, require_signature

CALL = (
    "_input",
    "lin_weight",
    "selected_token_ids",
    "attention_mask",
    "advantages",
    "bias",
    "old_per_token_logps",
    "ref_per_token_logps",
)
OWN = ("loss_type", "importance_sampling_level", "max_completion_length", "epsilon_low", "epsilon_high", "beta")


class LigerLoss:
    """Called as `LigerFusedLinearGRPOLoss` is: B completions padded to L tokens. `phi` [B]: of the batch to come."""

    def __init__(self, theirs: Any) -> None:
        names = (*OWN, *SAME_NAME, "temperature")
        missing = [name for name in names if not hasattr(theirs, name)]
        if missing:
            raise ValueError(
                f"{type(theirs).__module__}.{type(theirs).__qualname__} has no setting {', '.join(missing)}, so that "
                "its loss may be another; use trl>=1.11, or liger-kernel 0.8 with trl 0.29 to 1.10"
            )
        settings = {name: getattr(theirs, name) for name in names}
        check(settings)
        self.config = GrpoConfig.like("trl", importance_sampling_mode="none", **settings)
        self.phi: Tensor | None = None

    def __call__(
        self,
        _input: Tensor,  # [B, L, H]
        lin_weight: Tensor,  # [V, H]
        selected_token_ids: Tensor,  # [B, L]
        attention_mask: Tensor,  # [B, L], of the tokens that count
        advantages: Tensor,  # [B]
        bias: Tensor | None = None,  # [V]
        ref_per_token_logps: Tensor | None = None,  # [B, L]
        old_per_token_logps: Tensor | None = None,  # [B, L]
        vllm_is_ratio: Tensor | None = None,  # [B, L] or [B, 1]
        num_items_in_batch: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """(loss, [KL where beta is not 0, share of clipped tokens]), before TRL divides by the accumulation steps."""
        if self.config.loss_type == "luspo" and vllm_is_ratio is not None and vllm_is_ratio.shape[1] > 1:
            raise ValueError(
                "loss_type='luspo' needs vLLM's importance ratio of a completion [B, 1] here, got one of each token "
                f"{list(vllm_is_ratio.shape)}, with which Liger's sums run over padding; set "
                "vllm_importance_sampling_mode to 'sequence_truncate' or 'sequence_mask', or use trl>=1.16"
            )
        mask = attention_mask.bool()
        hidden, lengths = _input[mask], mask.sum(1).cpu()
        if not torch.is_autocast_enabled(hidden.device.type):
            lin_weight = lin_weight.to(hidden.dtype)
            bias = None if bias is None else bias.to(hidden.dtype)
        padded = {"old_logp": old_per_token_logps, "ref_logp": ref_per_token_logps}
        rows: dict[str, Any] = {"advantages": advantages, "phi": self.phi}
        if vllm_is_ratio is not None and vllm_is_ratio.shape[1] == 1:
            rows["importance_ratio"] = vllm_is_ratio[:, 0]
        else:
            padded["token_importance_ratio"] = vllm_is_ratio
        rows |= {name: value[mask] for name, value in padded.items() if value is not None}
        out = linear_grpo_loss(
            hidden,
            lin_weight,
            selected_token_ids[mask],
            torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            bias=bias,
            config=self.config,
            denominator=self._denominator(mask, num_items_in_batch),
            **rows,
        )
        logp = out.logp.new_zeros(mask.shape).masked_scatter(mask, out.logp)
        return out.loss, self._metrics(logp, mask, advantages, old_per_token_logps, ref_per_token_logps)

    def _denominator(self, mask: Tensor, num_items: Tensor | None) -> float | Tensor:
        """Completions, tokens of this call, or tokens of all ranks (of the generation batch, where TRL says them)."""
        if self.config.loss_type not in ("bnpo", "dapo", "cispo", "vespo"):
            return float(len(mask))
        tokens = mask.sum().float()
        if self.config.loss_type == "bnpo":
            return tokens.clamp(min=1)
        world = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            world = torch.distributed.get_world_size()
            if num_items is None:
                torch.distributed.all_reduce(tokens)
        tokens = tokens if num_items is None else torch.as_tensor(num_items, device=mask.device).float()
        return (tokens / world).clamp(min=1)

    def _metrics(
        self, logp: Tensor, mask: Tensor, advantages: Tensor, old: Tensor | None, ref: Tensor | None
    ) -> list[Tensor]:
        """Of [B, L]: the KL as it stands in the loss, and which tokens are beyond the clip's bounds."""
        difference = torch.zeros_like(logp) if old is None else (logp - old) * mask
        if self.config.importance_sampling_level == "sequence":
            difference = difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        ratio, count = difference.exp(), mask.sum().clamp(min=1)
        low, high = self.config.clip_bounds
        sign = advantages[:, None]
        clipped = ((ratio < low) & (sign < 0)) | ((ratio > high) & (sign > 0))
        metrics = [(clipped & mask).sum() / count]
        if self.config.beta:
            to_ref = torch.zeros_like(logp) if ref is None else ref - logp
            kl = to_ref.exp() - to_ref - 1
            kl = kl * ratio if self.config.use_bias_correction_kl else kl
            metrics.insert(0, torch.where(mask, kl, 0.0).sum() / count)
        return metrics


def check(settings: dict[str, Any]) -> None:
    """ValueError for what our table has not, or has otherwise."""
    loss_type, level = settings["loss_type"], settings["importance_sampling_level"]
    if loss_type not in LOSSES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSSES)}, got {loss_type!r}")
    if loss_type == "luspo" and (level != "sequence" or settings["beta"] != 0):
        raise ValueError(
            f"loss_type='luspo' needs importance_sampling_level='sequence' and beta=0 here, got {level!r} and "
            f"{settings['beta']}: otherwise Liger's sums run over padding, too; use trl>=1.16"
        )
    if level == "sequence" and loss_type in ("cispo", "sapo", "vespo"):
        raise ValueError(f"Liger has loss_type={loss_type!r} at importance_sampling_level='token' only, got 'sequence'")


def patch_liger(trainer: Any, done: Patch, weighed: bool) -> None:
    """Put a LigerLoss into the place of the trainer's own; it is told φ before each loss."""
    if not trainer.args.use_liger_kernel:
        raise ValueError(
            "this release of TRL fuses the head only with GRPOConfig(use_liger_kernel=True), got False; set it, or use "
            "trl>=1.16"
        )
    refuse_own(trainer, ("compute_loss", "compute_liger_loss"))
    name = "liger_loss" if hasattr(trainer, "liger_loss") else "liger_grpo_loss"
    theirs = getattr(trainer, name)
    if not isinstance(theirs, LigerLoss):  # a second patch, which Patch refuses
        require_signature(theirs.forward, CALL)
        if type(theirs).__module__.startswith("liger_kernel"):  # an older one, 0.6, has another loss
            require("liger-kernel", ("0.8",))
    ours, compute = (theirs if isinstance(theirs, LigerLoss) else LigerLoss(theirs)), trainer.compute_liger_loss

    def compute_liger_loss(unwrapped_model: Any, inputs: dict[str, Any]) -> Tensor:
        ours.phi = find_phi(inputs, weighed)
        return compute(unwrapped_model, inputs)

    done.replace(trainer, name, ours)
    done.replace(trainer, "compute_liger_loss", compute_liger_loss)
