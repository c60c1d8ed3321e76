"""From what a stage-2 step trains on to rows on the device, with all that their losses need but log-probs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from univg_kernels import GrpoConfig

from univg_fast.config import Config
from univg_fast.config.losses import loss_config, sampler_matters
from univg_fast.loss.grpo import RowTargets
from univg_fast.model import ImageFeatures
from univg_fast.packing import Row
from univg_fast.packing.pinning import sent
from univg_fast.packing.plan import Part, plan_rows
from univg_fast.packing.report import tally
from univg_fast.structs import Group
from univg_fast.train.choice import Share
from univg_fast.train.draws import Drawn
from univg_fast.train.rows import Builder, OverBudget, reduce_step
from univg_fast.train.scoring import Scored


class Unit(NamedTuple):
    """What is trained of a prompt: which of the rank's groups it is, and which of its responses."""

    number: int
    responses: list[int]


@dataclass
class Held:
    """A row on the device."""

    row: Row
    targets: RowTargets
    sampled: torch.Tensor  # [N] fp32, the log-probs at sampling
    features: ImageFeatures | None
    uids: list[str]


@dataclass
class MiniBatch:
    """One optimizer step's rows on this rank."""

    rows: list[Held]
    passes: int  # under ZeRO 2 and 3, which communicate in every pass, as many as any rank needs
    responses: float  # of all ranks, for means
    tokens: float
    empty: bool  # no rank has a row


def units_of(share: Share, scored: Scored, config: Config) -> list[Unit]:
    """What of a share is computed: not what can have no gradient, as far as the configuration says so."""
    drop, masked = config.grpo.zero_std_groups == "drop", config.grpo.mask_truncated_completions
    units = [Unit(k, scored.counting(k, masked)) for k in share.groups if scored.varied(k) or not drop]
    return [unit for unit in units if unit.responses]


def make_minibatches(
    drawn: Drawn, config: Config, build: Builder, over_budget: OverBudget, spare: Row
) -> tuple[list[MiniBatch], dict[str, float]]:
    """The step's mini-batches, and what all their rows amount to. `spare`: what stands in for a row. Collective.

    "dearest" of the latter is of all ranks: the largest cost of any of them in each mini-batch, as each ends together.
    """
    scored, budget, loss = drawn.trained, config.pack.budget_tokens, loss_config(config.grpo)
    units = [units_of(share, scored, config) for share in drawn.choice.shares]
    groups = [[scored.group(*unit) for unit in of] for of in units]
    sizes = [[scored.size(*unit, config) for unit in of] for of in units]
    plans = [plan_rows(of, budget) for of in sizes]
    for of, plan in zip(groups, plans, strict=True):
        _tell(over_budget, of, plan)
    with ThreadPoolExecutor(max(1, config.data.num_workers), thread_name_prefix="rows") as pool:
        made = [build.rows(*each, pool) for each in zip(groups, plans, strict=True)]
        counts = {f"rows{k}": float(len(plan)) for k, plan in enumerate(plans)}
        counts |= {f"cost{k}": sum(part.size.cost for row in plan for part in row) for k, plan in enumerate(plans)}
        most = reduce_step({}, drawn.digest, counts, drawn.refused)
        rows = [[row.to(build.device) for row in of] for of in made]
    minibatches, padding = [], 0
    for k, share in enumerate(drawn.choice.shares):
        parts = [[(units[k][part.group], part) for part in row] for row in plans[k]]
        held = [_held(*each, scored, loss) for each in zip(rows[k], parts, strict=True)]
        anyone = int(most[f"rows{k}"])
        passes = max(1, anyone if config.deepspeed.zero_stage >= 2 else len(held))
        padding += (passes - len(held)) * spare.num_tokens if anyone else 0
        minibatches.append(MiniBatch(held, passes, share.responses, share.tokens, anyone == 0))
    flat = [size for of in sizes for size in of]
    cut = [[part.size for part in parts] for plan in plans for parts in plan]
    dearest = sum(most[f"cost{k}"] for k in range(len(plans)))
    return minibatches, tally(flat, cut, budget, padding) | {"dearest": dearest}


def _tell(over_budget: OverBudget, groups: Sequence[Group], plan: Sequence[Sequence[Part]]) -> None:
    copies = Counter(part.group for parts in plan for part in parts)
    for part in (part for parts in plan for part in parts):
        over_budget.tell(groups[part.group].sample.record, part.size.tokens, copies[part.group])


def _held(row: Row, parts: Sequence[tuple[Unit, Part]], scored: Scored, loss: GrpoConfig) -> Held:
    """`parts`: of the row, each with the prompt that it is of."""
    device = row.target_ids.device
    places = [(unit.number, unit.responses[j]) for unit, part in parts for j in part.responses]
    completions = [scored.completions[number][j] for number, j in places]
    first = np.cumsum([0, *map(len, scored.completions)])
    index = torch.tensor([int(first[number]) + j for number, j in places])
    worth = torch.stack([scored.advantages, scored.phi]).index_select(1, index)
    sampled = torch.from_numpy(np.concatenate([c.logprobs for c in completions]).astype(np.float32))
    (advantages, phi), sampled = sent(worth, device), sent(sampled, device)
    targets = RowTargets(advantages, phi, sampling_logp=sampled if sampler_matters(loss) else None)
    numbers = [unit.number for unit, _ in parts]
    features = None if scored.features is None else ImageFeatures.cat([scored.features[k] for k in numbers])
    return Held(row, targets, sampled, features, [scored.samples[k].record.uid for k in numbers])
