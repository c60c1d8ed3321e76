"""φ in verl, whose policy losses are told neither rewards nor prompts.

The batch of an update has, for every completion, its prompt's uid and what the reward function returned; ranks hold
parts of it, so they exchange the metric once an update. Each micro-batch then brings its φ to `ppo_loss`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from univg_kernels import GrpoConfig

from .patching import Patch
from .phi import of_prompts
from .versions import require_signature

_FIELD = "univg_phi"
_PADDING = "pad"  # how the uid begins of copies of the first completion that verl fills up a batch with


class Weights:
    """φ of the completions that a policy loss is being made of.

    name: of the reward function's metric. config: difficulty, difficulty_power and normalize_difficulty.
    """

    def __init__(self, name: str, config: GrpoConfig) -> None:
        self.name, self.config = name, config
        self._now: Tensor | None = None

    def now(self) -> Tensor:
        """[B] fp32. Raises ValueError outside of an update of the actor."""
        if self._now is None:
            raise ValueError(
                f"verl: phi={self.name!r} needs the policy loss to be called by ppo_loss in an update of the actor, "
                "got another caller; leave phi out for distillation and for trainers of one's own"
            )
        return self._now

    def of(self, data: Any, group: Any) -> Tensor:
        """φ of the completions of an update's data, [B] fp32; group: the ranks that share the update."""
        uids = list(map(str, _column(data, "uid")))
        shared = "session_id" in data and self.name not in data  # outputs of a session have one reward_extra_info
        sessions = _column(data, "session_id") if shared else [None] * len(uids)
        values = [math.nan if uid.startswith(_PADDING) else x for uid, x in zip(uids, self._metric(data), strict=True)]
        mine = list(zip(uids, sessions, values, strict=True))
        every: list[Any] = [mine]
        if group is not None:
            every = [None] * torch.distributed.get_world_size(group)
            torch.distributed.all_gather_object(every, mine, group)
        rows = [row for part in every for row in part]
        # An agent's session may have several outputs: it counts once.
        one = {(uid, i if session is None else str(session)): iou for i, (uid, session, iou) in enumerate(rows)}
        prompts = [uid for uid, _ in one]
        by_uid = dict(zip(prompts, of_prompts(prompts, list(one.values()), self.config), strict=True))
        return torch.stack([by_uid[uid] for uid in uids])

    def _metric(self, data: Any) -> list[float]:
        """Beside the other columns (trainer.use_v1=False), or in extra_fields."""
        if self.name in data:
            return [float(value) for value in _column(data, self.name)]
        rows = _column(data, "extra_fields") if "extra_fields" in data else []
        infos = [row.get("reward_extra_info", {}) for row in rows]
        if not infos or any(self.name not in info for info in infos):
            names = sorted({name for info in infos for name in info}) or sorted(map(str, data.keys()))
            raise ValueError(
                f"verl: phi={self.name!r} must be a metric that the reward function returns for every completion, as "
                f'{{"score": ..., {self.name!r}: ...}}; there are {", ".join(names)}'
            )
        return [float(info[self.name]) for info in infos]


def _column(data: Any, name: str) -> list[Any]:
    if name not in data:
        raise ValueError(f"verl: the update's data must have {name!r}, got {', '.join(sorted(map(str, data.keys())))}")
    column = data[name]
    return column.tolist() if hasattr(column, "tolist") else list(column)


def replace_worker(done: Patch, weights: Weights, modes: frozenset[str]) -> None:
    """Let the actor's worker add φ to its data, and its `ppo_loss` hand it to the policy loss.

    modes: the losses that have a φ; ValueError in training for another.
    """
    from verl.workers import engine_workers
    from verl.workers.utils import losses

    worker, host_loss = engine_workers.TrainingWorker, losses.ppo_loss
    host_train = worker.train_mini_batch
    require_signature(host_loss, ("config", "model_output", "data", "dp_group"))
    require_signature(host_train, ("self", "data"))

    @functools.wraps(host_loss)
    def ppo_loss(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
        mode = config.policy_loss.get("loss_mode", "vanilla")
        if mode not in modes:
            raise ValueError(f"verl: phi needs loss_mode to be one of {', '.join(sorted(modes))}, got {mode!r}")
        weights._now = data.get(_FIELD, None)
        try:
            return host_loss(config, model_output, data, dp_group)
        finally:
            weights._now = None

    @functools.wraps(host_train)  # its __dict__, too: verl's dispatcher reads what `register` left there
    def train_mini_batch(self: Any, data: Any) -> Any:
        if getattr(self.loss_fn, "func", None) is ppo_loss:  # the critic is such a worker, too
            data[_FIELD] = weights.of(data, self.engine.get_data_parallel_group())
        return host_train(self, data)

    done.replace(losses, "ppo_loss", ppo_loss)
    done.replace(engine_workers, "ppo_loss", ppo_loss)
    done.replace(worker, "train_mini_batch", train_mini_batch)
