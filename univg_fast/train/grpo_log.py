"""What a stage-2 step leaves behind: metrics under TRL's names, and one line per prompt in rollouts/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from univg_kernels import GrpoOutput, combine_metrics, summarize
from univg_kernels.metrics import METRICS, NUM_SUMS

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.packing.plan import Part
from univg_fast.packing.report import figures
from univg_fast.train.scoring import Scored


def reduce_metrics(
    scored: Scored,
    plan: Sequence[Sequence[Part]],
    packed: Mapping[str, float],
    outputs: Sequence[Sequence[GrpoOutput]],
    config: Config,
) -> dict[str, float]:
    """The step's metrics over all ranks, from this rank's part; one collective.

    `plan`: this rank's rows; `packed`: their tally. `outputs`: of each iteration, of each row.
    """
    total = scored.scores.total
    lengths = [len(c.token_ids) for group in scored.completions for c in group]
    clipped = [c.finish == "length" for group in scored.completions for c in group]
    sums = {
        "prompts": len(scored.samples),
        "responses": len(lengths),
        "reward": float(total.sum()),
        "reward_std": float(scored.reward_std.sum()),
        "zero_std": float((scored.reward_std == 0).sum()),
        "miou": float(scored.miou.sum()),
        "phi": float(scored.phi.sum()),
        "length": float(sum(lengths)),
        "clipped": float(sum(clipped)),
        "prompt_tokens": float(sum(len(s.prompt_ids) for s in scored.samples)),
        "bad_records": float(len(scored.bad)),
    }
    sums |= packed
    sums |= {f"rewards/{name}": float(part.sum()) for name, part in scored.scores.parts.items()}
    vector = (
        combine_metrics(*(o.metrics for rows_ in outputs for o in rows_)).tolist() if plan else [0.0] * len(METRICS)
    )
    sums |= {f"kernel/{name}": x for name, x in zip(METRICS[:NUM_SUMS], vector, strict=False)}
    maxima = {f"kernel/{name}": x for name, x in zip(METRICS[NUM_SUMS:], vector[NUM_SUMS:], strict=True)}
    maxima |= {"gap": logprob_gap(scored, plan, outputs[0]), "dearest": packed["cost"]}
    all_ = distributed.reduce_floats(sums, maxima)
    prompts, responses = max(all_["prompts"], 1.0), max(all_["responses"], 1.0)
    metrics = summarize(torch.tensor([all_[f"kernel/{name}"] for name in METRICS]))
    metrics["num_tokens"] /= len(outputs)  # every iteration scores the same tokens
    metrics |= {
        "reward": all_["reward"] / responses,
        "reward_std": all_["reward_std"] / prompts,
        "frac_reward_zero_std": all_["zero_std"] / prompts,
        "miou": all_["miou"] / prompts,
        "difficulty_weight": all_["phi"] / responses,
        "completions/mean_length": all_["length"] / responses,
        "completions/clipped_ratio": all_["clipped"] / responses,
        "sampling/logp_difference/max": all_["gap"],
        "packed_tokens": all_["packed_tokens"],
        # what G separate sequences per prompt would have cost
        "dense_tokens": all_["prompt_tokens"] * config.grpo.num_generations + all_["length"],
        "bad_records": all_["bad_records"],
    }
    metrics |= figures(all_, all_["dearest"], distributed.world_size())
    metrics |= {f"rewards/{name}/mean": all_[f"rewards/{name}"] / responses for name in scored.scores.parts}
    return metrics


def logprob_gap(scored: Scored, plan: Sequence[Sequence[Part]], outputs: Sequence[GrpoOutput]) -> float:
    """Largest |log-prob at sampling - log-prob in training| of this rank's tokens."""
    gap = 0.0
    for parts, output in zip(plan, outputs, strict=True):
        sampled = np.concatenate([scored.completions[part.group][j].logprobs for part in parts for j in part.responses])
        gap = max(gap, float(np.abs(sampled - output.logp.float().cpu().numpy()).max(initial=0.0)))
    return gap


def rollout_rows(scored: Scored, step: int) -> list[dict[str, Any]]:
    """One object per prompt, as rollouts/*.jsonl has them."""
    rows, at = [], 0
    for k, (sample, group) in enumerate(zip(scored.samples, scored.completions, strict=True)):
        record = sample.record
        completions = []
        for c in group:
            parts = {name: round(float(part[at]), 6) for name, part in scored.scores.parts.items()}
            completions.append(
                {
                    "text": c.text,
                    "tokens": len(c.token_ids),
                    "finish": c.finish,
                    "box": scored.scores.boxes[at],
                    "rewards": parts,
                    "reward": round(float(scored.scores.total[at]), 6),
                    "advantage": round(float(scored.advantages[at]), 6),
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
                "question": record.question,
                "target_image": record.target_image,
                "gt": record.box,
                "miou": round(float(scored.miou[k]), 6),
                "difficulty_weight": round(float(scored.phi[at - 1]), 6),
                "completions": completions,
            }
        )
    return rows
