"""OpenRLHF: `Actor.forward` makes log-probabilities and entropies of actions without logits, and groups weigh φ.

OpenRLHF makes fp32 logits of all tokens, divides them by the temperature, and reads them twice, for log-probabilities
and for entropies. The loss (`PolicyLoss`, of [B, actions]) stays its own.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from univg_kernels import GrpoConfig

from .heads import head_of, scoring, spread
from .patching import Patch
from .phi import of_means, refuse_kl_in_reward, refuse_negative
from .versions import require, require_signature

TESTED = ("0.11.2",)
_FORWARD = (
    "sequences",
    "action_mask",
    "attention_mask",
    "return_output",
    "return_logprobs",
    "ring_attn_group",
    "return_entropy",
)


def patch(actor: Any) -> Patch:
    """Drop-in for one `openrlhf.models.Actor`: the policy's, the reference's, or both.

    The rows of actions are scored by `univg_kernels.linear_logprob`, at the actor's temperature; what the mask leaves
    out, prompts with it, is 0 in log-probabilities and entropies, which OpenRLHF multiplies by the mask anyway. Calls
    without an action mask, which want logits or all log-probabilities, are the host's own.
    Returns: a Patch; restore it after the backward pass of what it has scored.
    Raises: ValueError for another version, an adapter on lm_head, and (when called) packing_samples over a ring.
    """
    require("openrlhf", TESTED)
    require_signature(type(actor).forward, _FORWARD)
    head_of(actor.model)
    theirs = actor.forward

    def forward(
        self: Any,
        sequences: Tensor,
        action_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        if action_mask is None:
            return theirs(sequences, action_mask, attention_mask, **options)
        if options.get("ring_attn_group") is not None:
            raise ValueError(
                "Actor.forward got a ring_attn_group, whose ranks each hold a part of a row's tokens, which this "
                "drop-in does not follow; set ring_attn_size to 1, or train without the drop-in"
            )
        return _score(self, theirs, sequences, action_mask, attention_mask, options)

    done = Patch()
    done.replace(actor, "forward", MethodType(forward, actor))
    return done


def _score(
    actor: Any, theirs: Any, sequences: Tensor, action_mask: Tensor, attention_mask: Tensor | None, options: Any
) -> Any:
    """The host's own forward, whose model answers with [.., 2]: what the host would make of logits, made already."""
    import openrlhf.models.actor as host

    batch, length = sequences.shape
    wanted = torch.zeros_like(sequences, dtype=torch.bool)
    wanted[:, length - 1 - action_mask.shape[1] : -1] = action_mask.bool()
    targets = torch.roll(sequences, -1, 1)
    if getattr(actor, "packing_samples", False):  # the model sees the tokens of the attention mask in one row
        seen = attention_mask.bool() if attention_mask is not None else torch.ones_like(wanted)
        wanted, targets = wanted[seen][None], targets[seen][None]
    rows = wanted.flatten().nonzero()[:, 0]
    ids = targets.flatten()[rows]

    def score(scored: Tensor, channel: int) -> Tensor:
        return spread(scored[0, :, channel], rows, wanted.shape)

    with Patch() as patch, scoring(actor.model, rows, ids, actor.temperature):
        patch.replace(host, "log_probs_from_logits", lambda scored, labels: score(scored, 0))
        patch.replace(host, "compute_entropy", lambda scored: score(scored, 1))
        patch.replace(actor, "temperature", 1.0)  # it is in the scores already
        return theirs(sequences, action_mask, attention_mask, **options)


def patch_advantages(maker: Any, *, phi: str, difficulty: str = "exp", difficulty_power: float = 1.0) -> Patch:
    """Drop-in for a `RemoteExperienceMaker`: the advantages of each prompt's completions times φ of their mean IoU.

    phi: the entry of `Experience.info` that holds each completion's IoU, 0 to 1 (a reward function's extra_logs land
    there). Logged beside it: info["difficulty_weight"]. A prompt's completions are its n_samples_per_prompt.
    Raises: ValueError for another version, for "log", for KL in the reward (algo.kl.use_loss off and a coefficient
    above 0), and (when called) for an info without the entry.
    """
    require("openrlhf", TESTED)
    require_signature(maker.compute_advantages_and_returns, ("experiences",))
    config = GrpoConfig(difficulty=difficulty, difficulty_power=difficulty_power)
    refuse_negative(difficulty)
    _refuse_kl(maker)
    theirs = maker.compute_advantages_and_returns

    def weighted(experiences: list[Any]) -> list[Any]:
        _refuse_kl(maker)  # the coefficient may be adaptive
        found: list[Any] = theirs(experiences)
        if phi not in found[0].info:
            raise ValueError(
                f"phi must name an entry of Experience.info, got {phi!r}; it has {', '.join(found[0].info)}"
            )
        order = torch.tensor([i for x in found for i in x.index])
        ious = torch.empty(len(order))
        ious[order] = torch.cat([torch.as_tensor(x.info[phi]).float().cpu() for x in found])
        size = maker.strategy.args.rollout.n_samples_per_prompt
        weights = of_means(ious.view(-1, size).nanmean(-1), config)
        each = weights.repeat_interleave(size)[order].split([len(x.index) for x in found])
        for experience, weight in zip(found, each, strict=True):
            experience.advantages = experience.advantages * weight.to(experience.advantages)[:, None]
            experience.info["difficulty_weight"] = weight
        return found

    done = Patch()
    done.replace(maker, "compute_advantages_and_returns", weighted)
    return done


def _refuse_kl(maker: Any) -> None:
    """With algo.kl.use_loss the reward's KL is all zeros."""
    if maker.kl_ctl.value > 0 and not maker.strategy.args.algo.kl.use_loss:
        refuse_kl_in_reward(
            f"algo.kl.init_coef={maker.kl_ctl.value}", "set algo.kl.use_loss, or algo.kl.init_coef to 0"
        )
