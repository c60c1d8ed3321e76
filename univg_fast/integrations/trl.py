"""TRL's GRPOTrainer with the fused head: `patch(trainer)`; or its log-probs only: `patch_logprobs()`.

TRL's fused head runs the backbone inside of the model's forward, gathers the head's weight (ZeRO-3, FSDP2) and hands
the states of the completions' tokens to one function. There the loss is made, with its gradients, in three products
instead of four. TRL's own `_compute_loss` then runs on the log-probs, without a gradient, for its metrics.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from univg_kernels import GrpoConfig

from .patching import Patch, all_or_nothing
from .phi import of_means
from .trl_head import Head
from .trl_rows import LOSSES, accumulation, find_phi, is_gmpo, loss_of_empty, make_batch, make_config, refuse_own
from .versions import require, require_signature

FUSED = ("1.16",)  # releases with the fused head
LIGER = ("0.29", *(f"1.{minor}" for minor in range(14)))  # releases whose use_liger_kernel brings a fused loss


def patch(
    trainer: Any,
    *,
    phi: str | None = None,
    difficulty: str = "exp",
    difficulty_power: float = 1.0,
    normalize_difficulty: bool = False,
) -> Patch:
    """Make the loss of a `trl.GRPOTrainer` (or `GMPOTrainer`) by `linear_grpo_loss`; everything else stays TRL's.

    Args:
        trainer: after its __init__, before or between calls of `train()`.
        phi: the name of a reward function (as in `rewards/NAME/mean`) whose value is a completion's IoU, 0 to 1. Its
            mean over a group weighs the group's policy term by φ (`difficulty_weight`), and `miou` and
            `difficulty_weight` are logged. A group for which it gives None throughout has φ = 1. None: no φ.
        difficulty, difficulty_power, normalize_difficulty: the formula of φ, as in GrpoConfig; it is normalised over
            the groups of a generation batch on all ranks.
    Returns: the Patch; `restore()` it, or use it as a context manager around `trainer.train()`. TRL's head is one for
        all trainers of a process, so that only one trainer at a time can be patched: keep the Patch.
    Raises: ValueError for another release of TRL, a loss or a reward that is not there, fp16, and a subclass that has
        a method of the loss of its own.
    """
    version = require("trl", (*LIGER, *FUSED))
    from trl import GRPOTrainer

    if not isinstance(trainer, GRPOTrainer):
        raise ValueError(f"patch takes a trl.GRPOTrainer, got {type(trainer).__name__}; make the trainer first")
    if trainer.args.fp16:
        raise ValueError(
            "fp16=True is not supported: gradients are made in fp16 before its scaler sees them; use bf16=True"
        )
    with all_or_nothing() as done:
        if version.startswith(tuple(f"{release}." for release in LIGER)):
            from .trl_liger import patch_liger

            patch_liger(trainer, done, weighed=phi is not None)
        else:
            _patch_fused(trainer, done, weighed=phi is not None)
        if phi is not None:
            formula = GrpoConfig(
                difficulty=difficulty, difficulty_power=difficulty_power, normalize_difficulty=normalize_difficulty
            )
            _patch_rewards(trainer, done, phi, formula)
    return done


def patch_logprobs() -> Patch:
    """Only the log-probs and entropies inside of TRL's fused head, by `linear_logprob`; for every trainer of TRL.

    Calls that ask for more (SFT's is_top1, DPO's mean_logits) stay TRL's. Raises ValueError for another release of TRL.
    """
    require("trl", FUSED)
    import trl.trainer.utils as utils

    done = Patch()
    done.replace(utils, "_ChunkedLogProbFunction", _head(utils))
    return done


def _head(utils: Any, **more: Any) -> Head:
    theirs = utils._ChunkedLogProbFunction
    if not isinstance(theirs, Head):  # a second patch, which Patch refuses
        require_signature(theirs.forward, ("hidden", "weight", "bias", "targets", "temperature", "chunk_size"))
        require_signature(theirs.forward, ("final_logit_softcapping", "logit_scale", "outputs"))
    return Head(theirs, **more)


def _patch_fused(trainer: Any, done: Patch, weighed: bool) -> None:
    import trl.trainer.utils as utils
    from trl import GRPOTrainer

    _check_loss(trainer, GRPOTrainer)
    head = _head(utils, high_entropy=lambda h, m: trainer.get_high_entropy_mask(h, m, 1 - trainer.top_entropy_quantile))
    compute_loss, log_probs = trainer._compute_loss, trainer._get_per_token_logps_and_entropies
    aux: list[Tensor] = []

    def logps_and_entropies(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logps, entropies, aux_loss = log_probs(*args, **kwargs)
        if head.batch is None:  # old and reference log-probs
            return logps, entropies, aux_loss
        head.loaded = logps
        aux[:] = [] if aux_loss is None else [aux_loss]
        return logps.detach(), entropies, aux_loss

    def loss_of(model: Any, inputs: dict[str, Any]) -> Tensor:
        batch = make_batch(trainer, inputs, find_phi(inputs, weighed))
        head.begin(batch)
        try:
            compute_loss(model, inputs)  # for its metrics
            loss, bonus = head.take()
        finally:
            head.end()
        if batch.config.loss_type == "gmpo":
            loss = loss + loss_of_empty(batch).to(loss)
        elif trainer._entropy_bonus_enabled:
            _log_policy_loss(trainer, loss.detach() + batch.config.entropy_coef * bonus, batch.config.loss_type)
        if aux:
            loss = loss + trainer.router_aux_loss_coef * aux[0] / accumulation(trainer)
        return loss

    done.replace(utils, "_ChunkedLogProbFunction", head)
    done.replace(utils, "_use_triton", lambda device: True)  # it says whether only completions are scored
    done.replace(trainer, "_get_per_token_logps_and_entropies", logps_and_entropies)
    done.replace(trainer, "_compute_loss", loss_of)


def _log_policy_loss(trainer: Any, loss: Tensor, loss_type: str) -> None:
    """In place of the one that TRL has just logged, which knows no φ."""
    scale = 1.0 if loss_type in ("cispo", "dapo", "vespo") else accumulation(trainer)
    logged = trainer._metrics["train" if trainer.model.training else "eval"]["policy_loss"]
    logged[-1] = trainer.accelerator.gather(loss * scale).nanmean().item()


def _check_loss(trainer: Any, base: type) -> None:
    require_signature(base._compute_loss, ("model", "inputs"))  # type: ignore[attr-defined]
    refuse_own(trainer, ("compute_loss", "_compute_loss", "_get_per_token_logps_and_entropies"))
    if not is_gmpo(trainer) and trainer.loss_type not in LOSSES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSSES)}, got {trainer.loss_type!r}")
    make_config(trainer)  # refuses what contradicts itself, before the first step


def _patch_rewards(trainer: Any, done: Patch, name: str, formula: GrpoConfig) -> None:
    """Each generation batch gets `phi` [B] beside its advantages."""
    if name not in trainer.reward_func_names:
        raise ValueError(
            f"phi must be one of the reward functions {', '.join(trainer.reward_func_names)}, got {name!r}"
        )
    index = trainer.reward_func_names.index(name)
    calculate, generate = trainer._calculate_rewards, trainer._generate_and_score_completions
    seen: list[Tensor] = []

    def rewards(*args: Any, **kwargs: Any) -> Tensor:
        seen[:] = [calculate(*args, **kwargs)]  # [completions of all ranks, reward functions]
        return seen[0]

    def batch(inputs: Any) -> dict[str, Any]:
        output = generate(inputs)
        training = trainer.model.training
        group = (
            trainer.num_generations if training else getattr(trainer, "num_generations_eval", trainer.num_generations)
        )
        miou = seen.pop()[:, index].view(-1, group).nanmean(1)
        phi = of_means(miou, formula)
        metrics = trainer._metrics["train" if training else "eval"]
        metrics["miou"].append(miou.nanmean().item())
        metrics["difficulty_weight"].append(phi.mean().item())
        size, rank = len(output["advantages"]), trainer.accelerator.process_index
        output["phi"] = phi.repeat_interleave(group)[rank * size : (rank + 1) * size]
        return output

    done.replace(trainer, "_calculate_rewards", rewards)
    done.replace(trainer, "_generate_and_score_completions", batch)
