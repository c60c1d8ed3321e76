"""What a stage-2 step leaves behind: metrics under TRL's names, and one line per prompt in rollouts/."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from univg_kernels import GrpoOutput, combine_metrics, summarize
from univg_kernels.metrics import METRICS, NUM_SUMS

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.data.prompts import prompt_text
from univg_fast.packing.report import figures
from univg_fast.train.draws import Drawn
from univg_fast.train.engine import StepResult
from univg_fast.train.minibatch import Held


class Update(NamedTuple):
    """One optimizer step, and what came of each of this rank's rows."""

    result: StepResult
    outputs: list[GrpoOutput]


def reduce_metrics(
    drawn: Drawn, packed: Mapping[str, float], held: Sequence[Held], updates: Sequence[Update], config: Config
) -> dict[str, float]:
    """The step's metrics over all ranks, from this rank's part; one collective, and one copy from the device.

    Of rewards and completions: over all that was drawn. `packed`: the tally of the rows trained on, which are `held`.
    """
    all_ = distributed.reduce_floats(*of_this_rank(drawn, packed, held, updates))
    metrics = of_all_ranks(all_, drawn, updates, config)
    return metrics | figures(all_, packed["dearest"], distributed.world_size())


def of_this_rank(
    drawn: Drawn, packed: Mapping[str, float], held: Sequence[Held], updates: Sequence[Update]
) -> tuple[dict[str, float], dict[str, float]]:
    """(what ranks add up, what they take the largest of)."""
    scored = drawn.scored
    total = scored.scores.total
    lengths = [len(c.token_ids) for group in scored.completions for c in group]
    ended = [len(c.token_ids) for group in scored.completions for c in group if c.finish != "length"]
    sums = {
        "prompts": len(scored.samples),
        "responses": len(lengths),
        "reward": float(total.sum()),
        "reward_squared": float((total**2).sum()),
        "reward_group_std": float(scored.reward_std.sum()),
        "zero_std": float((scored.reward_std == 0).sum()),
        "miou": float(scored.miou.sum()),
        "phi": float(scored.phi.sum()),
        "length": float(sum(lengths)),
        "ended": float(len(ended)),
        "ended_length": float(sum(ended)),
        "bad_records": float(len(scored.bad)),
    }
    sums |= {name: value for name, value in packed.items() if name != "dearest"}
    for name, part in scored.scores.parts.items():
        sums |= {f"rewards/{name}": float(part.sum()), f"squares/{name}": float((part**2).sum())}
    vector, sums["gap_sum"], maxima_gap = read_rows(held, updates)
    sums["loss"] = sum(update.result.loss for update in updates) / max(len(updates), 1)
    sums |= {f"kernel/{name}": x for name, x in zip(METRICS[:NUM_SUMS], vector, strict=False)}
    maxima = {f"kernel/{name}": x for name, x in zip(METRICS[NUM_SUMS:], vector[NUM_SUMS:], strict=True)}
    maxima |= {
        "gap": maxima_gap,
        "longest": max(lengths, default=0),
        "longest_ended": max(ended, default=0),
    }
    maxima |= {"-shortest": -min(lengths, default=math.inf), "-shortest_ended": -min(ended, default=math.inf)}
    return sums, maxima


def of_all_ranks(
    all_: Mapping[str, float], drawn: Drawn, updates: Sequence[Update], config: Config
) -> dict[str, float]:
    """The metrics under their names, from the sums and maxima over all ranks."""
    prompts, responses = max(all_["prompts"], 1.0), max(all_["responses"], 1.0)
    metrics = summarize(torch.tensor([all_[f"kernel/{name}"] for name in METRICS]))
    metrics["scored_tokens"] = metrics.pop("num_tokens") / config.grpo.num_iterations  # each scores the same tokens
    del metrics["sampling/logp_difference/max"]  # of later updates to the policy that sampled
    metrics |= {
        "loss": all_["loss"],
        "grad_norm": sum(u.result.grad_norm for u in updates) / max(len(updates), 1),
        "skipped": float(sum(not u.result.applied for u in updates)),
        "updates": float(len(updates)),
        "reward": all_["reward"] / responses,
        "reward_std": spread(all_["reward"], all_["reward_squared"], all_["responses"]),
        "reward_group_std": all_["reward_group_std"] / prompts,
        "frac_reward_zero_std": all_["zero_std"] / prompts,
        "miou": all_["miou"] / prompts,
        "difficulty_weight": all_["phi"] / responses,
        "completions/mean_length": all_["length"] / responses,
        "completions/min_length": -all_["-shortest"] if all_["responses"] else 0.0,
        "completions/max_length": all_["longest"],
        "completions/clipped_ratio": 1.0 - all_["ended"] / responses if all_["responses"] else 0.0,
        "completions/mean_terminated_length": all_["ended_length"] / max(all_["ended"], 1.0),
        "completions/min_terminated_length": -all_["-shortest_ended"] if all_["ended"] else 0.0,
        "completions/max_terminated_length": all_["longest_ended"],
        "sampling/sampling_logp_difference/mean": all_["gap_sum"] / max(metrics["scored_tokens"], 1.0),
        "sampling/sampling_logp_difference/max": all_["gap"],
        "bad_records": all_["bad_records"],
    }
    if config.grpo.dynamic_sampling_max_draws > 1:
        kept = float(drawn.choice.prompts)
        metrics |= {"sampling/draws": float(drawn.draws), "sampling/kept": kept}
        metrics["sampling/wasted"] = 1.0 - kept / max(drawn.choice.drawn, 1)
    for name in drawn.scored.scores.parts:
        total_, squares = all_[f"rewards/{name}"], all_[f"squares/{name}"]
        metrics[f"rewards/{name}/mean"] = total_ / responses
        metrics[f"rewards/{name}/std"] = spread(total_, squares, all_["responses"])
    return metrics


def spread(total: float, squares: float, count: float) -> float:
    """The standard deviation (over count - 1) of `count` values, from their sum and the sum of their squares."""
    variance = (squares - total**2 / count) / (count - 1) if count > 1 else 0.0
    return math.sqrt(variance) if variance > 1e-12 * squares else 0.0  # what rounding leaves of equal values is none


def read_rows(held: Sequence[Held], updates: Sequence[Update]) -> tuple[list[float], float, float]:
    """The kernels' metrics of all rows of all updates, and the sum and maximum over this rank's tokens of
    |log-prob at sampling - log-prob in training|; in one copy from the device."""
    rows = [output.metrics for update in updates for output in update.outputs]
    if not rows:
        return [0.0] * len(METRICS), 0.0, 0.0
    apart = [(h.targets.old_logp - h.sampled).abs() for h in held if h.targets.old_logp is not None]
    gap = torch.stack([torch.stack([x.double().sum().float(), x.amax()]) for x in apart])
    both = [gap[:, 0].sum()[None], gap[:, 1].amax()[None]]
    *vector, total, largest = torch.cat([combine_metrics(*rows), *both]).tolist()
    return vector, total, largest


def rollout_rows(drawn: Drawn, step: int, config: Config) -> list[dict[str, Any]]:
    """One object per prompt drawn, as rollouts/*.jsonl has them."""
    scored, rows, at = drawn.scored, [], 0
    advantages, scores = scored.advantages.tolist(), {n: part.tolist() for n, part in scored.scores.parts.items()}
    drop = config.grpo.zero_std_groups == "drop"
    for k, (sample, group) in enumerate(zip(scored.samples, scored.completions, strict=True)):
        record, std = sample.record, float(scored.reward_std[k])
        completions: list[dict[str, Any]] = []
        for c in group:
            parts = {name: round(part[at], 6) for name, part in scores.items()}
            completions.append(
                {
                    "text": c.text,
                    "tokens": len(c.token_ids),
                    "finish": c.finish,
                    "box": scored.scores.boxes[at],
                    "rewards": parts,
                    "reward": round(float(scored.scores.total[at]), 6),
                    "advantage": round(advantages[at], 6),
                    "logp_mean": round(float(c.logprobs.mean()), 6),
                }
            )
            at += 1
        rows.append(
            {
                "step": step,
                "uid": record.uid,
                "task": record.task,
                "images": list(record.images),
                "sizes": [list(size) for size in sample.sizes],
                "grid": sample.image_grid_thw.tolist(),
                "question": record.question,
                "prompt": prompt_text(record, config.data.prompt_template),
                "coords": "norm1000",  # of gt and of the completions' boxes
                "target_image": record.target_image,
                "gt": record.box,
                "miou": round(float(scored.miou[k]), 6),
                "group": {
                    "mean": round(sum(c["reward"] for c in completions) / max(len(completions), 1), 6),
                    "std": round(std, 6),
                    "weight": round(float(scored.phi[at - 1]), 6),  # the difficulty's, of the policy term
                    "dropped": k not in drawn.choice.chosen or (drop and not scored.varied(k)),
                },
                "completions": completions,
            }
        )
    return rows
