"""Run under torchrun by test_grpo_step.py: jobs on `grpo_stage`. Rank 0 writes a JSON report."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from grpo_stage import COMMON, Stage, settings

from univg_fast import distributed
from univg_fast.structs import Completion, Record
from univg_fast.train import choice, stopping
from univg_fast.train.draws import Drawn, Draws
from univg_fast.train.minibatch import make_minibatches
from univg_fast.train.setup import Inputs, prepare
from univg_fast.train.state import StageState


def finite(metrics: Mapping[str, float]) -> bool:
    return all(math.isfinite(value) for value in metrics.values())


def dynamic(inputs: Inputs) -> list[dict[str, Any]]:
    """Three steps; the last one of a stage that stands where the second one ended."""
    config, found, state = settings(grpo__dynamic_sampling_max_draws=3), [], StageState()
    stage = Stage(inputs, config)
    for _ in range(3):
        outcome = stage.step(state)
        assert outcome is not None and finite(outcome.metrics)
        mine = [row["uid"] for row in outcome.rollouts() if not row["group"]["dropped"]]
        trained = sorted(uid for uids in distributed.gather_objects(mine) for uid in uids)
        names = ("loss", "grad_norm", "sampling/draws", "sampling/kept", "sampling/wasted", "frac_reward_zero_std")
        numbers = {name: outcome.metrics[name] for name in names} | {"bad_records": outcome.metrics["bad_records"]}
        seeds = sorted({seed for of in distributed.gather_objects(stage.rollout.seeds) for seed in of})
        numbers["towers"] = float(sum("visual" in name for name in stage.rollout.got))
        numbers["weights"] = float(len(stage.rollout.got))
        found.append(numbers | {"trained": trained, "cursor": outcome.cursor, "seeds": seeds})
        state = StageState(step=state.step + 1, cursor=outcome.cursor)
        stage.rollout.seeds.clear()
    stage.close()
    return found


def of_rank_0(record: Record, seed: int) -> bool:
    return distributed.rank() == 0


def moving(inputs: Inputs, **given: Any) -> list[dict[str, Any]]:
    """Only rank 0's rewards differ, till it has all four groups: a step that moves two, and one that moves none.

    Of four updates that leave the sampled policy behind, with all that is settled over the whole step.
    """
    several = {"grpo__steps_per_generation": 2, "grpo__num_iterations": 2, "grpo__scale_rewards": "batch"}
    several |= {"grpo__normalize_difficulty": True}
    config = settings(grpo__dynamic_sampling_max_draws=4, pack__budget_tokens=10_000, **several, **given)
    found, changes = [], []
    for even_out in (choice.even_out, lambda costs, holders, ranks: list(holders)):
        stage = Stage(inputs, config, of_rank_0)
        before = stage.weights()
        with mock.patch.object(choice, "even_out", even_out):
            outcome = stage.step(StageState())
        assert outcome is not None
        rows = [row for rows in distributed.gather_objects(outcome.rollouts()) for row in rows]
        found.append({name: outcome.metrics[name] for name in ("loss", "grad_norm", "kl", "num_samples")})
        found[-1] |= {"imbalance": outcome.metrics["pack/imbalance"], "rows": outcome.metrics["pack/rows"]}
        found[-1]["trained"] = sorted(row["uid"] for row in rows if not row["group"]["dropped"])
        changes.append(stage.weights() - before)
        stage.close()
    apart = (changes[0] - changes[1]).abs().max() / changes[1].abs().max()  # of what the updates changed
    return [of | {"apart": float(apart)} for of in found]


def nothing_to_learn(inputs: Inputs, **given: Any) -> dict[str, Any]:
    """Rewards are equal in all groups, or in those of rank 0: what a step then does."""
    lucky = (lambda record, seed: distributed.rank() > 0) if given.pop("lucky", False) else lambda record, seed: False
    stage = Stage(inputs, settings(**given), lucky)
    before, outcome = stage.weights(), stage.step(StageState())
    assert outcome is not None
    metrics = {name: outcome.metrics[name] for name in ("updates", "skipped", "loss", "grad_norm", "num_samples")}
    metrics |= {"finite": finite(outcome.metrics), "cursor": outcome.cursor, "rate": outcome.metrics["learning_rate"]}
    metrics["moved"] = not torch.equal(before, stage.weights())
    stage.close()
    return metrics


def old_policies(inputs: Inputs) -> float:
    """Largest difference of old log-probs by a pass of their own and by the update's first one."""
    config = settings(grpo__steps_per_generation=2, grpo__beta=0.0)
    stage = Stage(inputs, config, lambda record, seed: True)
    step, drawn = stage.step, stage.step.draws(0)
    assert drawn is not None
    gap = 0.0
    for minibatch in make_minibatches(drawn, config, step.build, step.over_budget, step.spare)[0]:
        outputs: list[Any] = []
        step._score(minibatch, after_an_update=True)
        apart = [held.targets.old_logp for held in minibatch.rows]
        for held in minibatch.rows:
            held.targets.old_logp = None
        for loss in step._losses(minibatch, outputs, is_first=False):
            assert loss.requires_grad
        pairs = zip(apart, outputs, strict=True)
        gap = max([gap, *(float((a - output.logp).abs().max()) for a, output in pairs if a is not None)])
        assert not any(a is None for a in apart)
    stage.close()
    return float(distributed.reduce_floats({}, {"gap": gap})["gap"])


def several_updates(inputs: Inputs) -> dict[str, float]:
    given = {"grpo__steps_per_generation": 2, "grpo__num_iterations": 2, "grpo__learning_rate": 1e-2}
    stage = Stage(inputs, settings(**given), lambda record, seed: True)
    outcome, once = stage.step(StageState()), Stage(inputs, settings(), lambda record, seed: True)
    single = once.step(StageState())
    assert outcome is not None and single is not None
    names = ("updates", "scored_tokens", "importance_sampling_ratio/max")
    found = {name: outcome.metrics[name] for name in names} | {"once": single.metrics["scored_tokens"]}
    stage.close()
    once.close()
    return found


def waiting(inputs: Inputs) -> dict[str, float]:
    """Three updates of four prompts: two ranks wait in two of them. What the metric says, and by hand."""
    config = settings(grpo__steps_per_generation=3, pack__budget_tokens=10_000)
    stage = Stage(inputs, config, lambda record, seed: True)
    drawn, outcome = stage.step.draws(0), stage.step(StageState())
    assert drawn is not None and outcome is not None
    everyone = range(config.grpo.num_generations)
    mine = [sum(drawn.scored.size(k, everyone, config).cost for k in of.groups) for of in drawn.choice.shares]
    costs = np.array(distributed.gather_objects(mine))
    stage.close()
    assert set(stage.phases.take()) == {"sync", "data", "gen", "score", "ref", "update", "optim"}
    return {"told": outcome.metrics["pack/imbalance"], "found": costs.max(0).sum() / costs.mean(0).sum() - 1}


@dataclass
class Watched(Draws):
    """Draws whose image features can be counted: those that something still holds."""

    features: list[weakref.ref[torch.Tensor]] = field(default_factory=list)

    def __call__(self, cursor: int) -> Drawn | None:
        drawn = super().__call__(cursor)
        if drawn is not None and drawn.trained.features is not None:
            self.features += [weakref.ref(of.pooled) for of in drawn.trained.features]
        return drawn

    def alive(self) -> int:
        return sum(of() is not None for of in self.features)


def features_held(inputs: Inputs) -> dict[str, list[int]]:
    """Of each rank's image features, drawn and received: how many there were, and are left when the update begins."""
    config = settings(grpo__dynamic_sampling_max_draws=2, grpo__beta=0.0)
    stage, left = Stage(inputs, config, of_rank_0), []
    draws = Watched(**vars(stage.step.draws))
    stage.step.draws = draws
    stage.engine.module.register_forward_pre_hook(lambda *_: left.append(draws.alive()))
    assert stage.step(StageState()) is not None
    stage.close()
    found = distributed.gather_objects((len(draws.features), max(left)))
    return {"had": [had for had, _ in found], "left": [many for _, many in found]}


def like_shares(inputs: Inputs) -> dict[str, Any]:
    """Of four rollouts, and each of their two updates: how many prompts each rank has, and which all of them have."""
    stage, counts, places = Stage(inputs, settings(grpo__steps_per_generation=2)), [], []
    for cursor in range(4):
        drawn = stage.step.draws(cursor)
        assert drawn is not None
        mine = [sorted(drawn.scored.samples[k].record.uid for k in of.groups) for of in drawn.choice.shares]
        everyone = distributed.gather_objects(mine)
        counts += [[len(of[k]) for of in everyone] for k in range(2)]
        places += [sorted(uid for of in everyone for uid in of[k]) for k in range(2)]
    stage.close()
    return {"counts": counts, "prompts": places}


def lost(inputs: Inputs) -> dict[str, Any]:
    """The loss of one sample, which the last of two ranks received, is NaN: who is named, and what moved."""
    stage, seen = Stage(inputs, settings(grpo__dynamic_sampling_max_draws=4), of_rank_0), []

    def poison(module: Any, arguments: Any, output: Any) -> Any:
        if not isinstance(output, tuple) or distributed.rank() != distributed.world_size() - 1 or seen:
            return None
        seen.append(arguments[0])
        return output._replace(loss=output.loss * float("nan"))

    stage.engine.module.register_forward_hook(poison)
    before, outcome = stage.weights(), stage.step(StageState())
    assert outcome is not None
    named = distributed.gather_objects((outcome.suspects, outcome.uids, outcome.metrics["skipped"]))
    moved = not torch.equal(before, stage.weights())
    stage.close()
    return {"named": [n for n, _, _ in named], "uids": [u for _, u, _ in named], "skipped": named[0][2], "moved": moved}


def stopped(inputs: Inputs) -> dict[str, Any]:
    """A signal to the last rank, in the second draw. It stays heard: the last of the jobs."""
    stage = Stage(inputs, settings(grpo__dynamic_sampling_max_draws=3), lambda record, seed: False)
    sampled = stage.rollout.generate

    def generate(*arguments: Any) -> list[list[Completion]]:
        if len(stage.rollout.seeds) == 1 and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            while not stopping.requested():
                time.sleep(0.01)
        return sampled(*arguments)

    stage.rollout.generate = generate  # type: ignore[method-assign]
    before, outcome = stage.weights(), stage.step(StageState())
    found = {"abandoned": outcome is None, "draws": len(stage.rollout.seeds)}
    found["moved"] = not torch.equal(before, stage.weights())
    return found


def main() -> None:
    out, zero_stage = Path(sys.argv[1]), sys.argv[2]
    COMMON["deepspeed.zero_stage"] = zero_stage
    distributed.init(timeout_s=300)
    stopping.install()
    guard: AbstractContextManager[None] = stopping.finishing()
    inputs = prepare(settings(), out)
    drop = {"grpo__zero_std_groups": "drop"}
    report: dict[str, Any] = {
        "dynamic": dynamic(inputs),
        "moving": moving(inputs),
        "moving, tower trains": moving(inputs, model__freeze_vision_tower=False),
        "all equal": nothing_to_learn(inputs, **drop),
        "all equal, drawn anew": nothing_to_learn(inputs, grpo__dynamic_sampling_max_draws=2),
        "one rank's equal": nothing_to_learn(inputs, lucky=True, **drop),
        "old": old_policies(inputs),
        "several": several_updates(inputs),
        "waiting": waiting(inputs),
        "shares": like_shares(inputs),
        "features": features_held(inputs),
        "lost": lost(inputs),
    }
    try:
        with guard:
            report["stopped"] = stopped(inputs)
    except stopping.Stopped as stop:
        report["code"] = stop.code
    if distributed.is_main():
        (out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    distributed.run(main)
