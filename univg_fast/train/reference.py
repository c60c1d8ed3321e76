"""The reference policy of stage 2: the weights that the stage began with, for its KL term.

With LoRA it is the policy itself with its adapters off. Else it is a second model, on the device or in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from univg_kernels import Backend

from univg_fast.config import Config
from univg_fast.data.samples import Processor
from univg_fast.loss import logprob_head
from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.model.lora import adapters_off, has_adapters
from univg_fast.model.packed import Head
from univg_fast.packing import Row
from univg_fast.rollout.local import evaluating
from univg_fast.train.setup import load_policy
from univg_fast.train.streaming import StreamedWeights

Spare = tuple[Row, ImageFeatures | None]


@dataclass(frozen=True)
class Reference:
    """`forward(row, head, features)`, called without gradients and dropout, and inside of `context()`.

    `collective`: it communicates, so that every rank must make the same number of passes.
    """

    forward: Callable[[Row, Head, ImageFeatures | None], Any]
    module: torch.nn.Module
    temperature: float
    kernels: Backend
    line: str
    collective: bool = False
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def log_probs(
        self, rows: Sequence[Row], features: Sequence[ImageFeatures | None], passes: int, spare: Spare
    ) -> list[torch.Tensor]:
        """Of each row's targets, [N] fp32. `passes`: the most rows of any rank; `spare` stands in for missing ones."""
        pairs = list(zip(rows, features, strict=True))
        more = [spare] * (passes - len(pairs)) if self.collective else []
        with evaluating(self.module), self.context():
            found = [
                self.forward(row, logprob_head(row, self.temperature, self.kernels), feature)
                for row, feature in (*pairs, *more)
            ]
        return found[: len(pairs)]


def make_reference(
    config: Config, processor: Processor, start: str, device: torch.device, engine: Any, plain: PackedModel
) -> Reference | None:
    """As `grpo.reference` says; None where grpo.beta is 0. `start`: the model that the stage began with.

    `plain`: the policy in one piece, whose vision tower the reference shares where no step changes it.
    """
    if config.grpo.beta == 0:
        return None
    policy: PackedModel = engine.module
    kind, how = config.grpo.reference, (config.grpo.temperature, config.model.kernels)
    if kind == "auto" and has_adapters(policy):
        line = "reference: the policy with its adapters off"
        collective = engine.zero_optimization_stage() == 3
        return Reference(engine, policy, *how, line, collective, partial(adapters_off, policy))
    on_host = kind == "host"
    if on_host:  # Liger looks at a model on the device; the rows are the policy's, whatever attends in its layers
        config = replace(config, model=replace(config.model, liger=False, attention="torch"))
    where = torch.device("cpu") if on_host else device
    model = load_policy(config, processor, start, where, adapters=False).eval().requires_grad_(False)
    shares = not policy.vision_trains
    if shares:
        model.model.model.visual = plain.model.model.visual
    beside = ", but for the vision tower, which it shares with the policy" if shares else ""
    if not on_host:
        return Reference(model, model, *how, f"reference: a copy on the device{beside}")
    streamed = StreamedWeights(model, device, tower=not shares)
    line = f"reference: {streamed.host_bytes / 2**30:.2f} GiB in host memory, on the device a layer at a time{beside}"
    return Reference(streamed.forward, model, *how, line, context=streamed.session)
