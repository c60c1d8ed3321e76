"""The curves of the report: one table, a line per chart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """One chart: `curves` are (key of metrics.jsonl, name in the legend); a key may hold one *."""

    title: str
    unit: str
    note: str
    curves: tuple[tuple[str, str], ...]
    log: bool = False
    floor: float | None = None  # the y axis reaches down to at least this
    ceiling: float | None = None


LOSS = Panel("Loss", "nats per token", "Cross-entropy of the target answer.", (("loss", "loss"),), floor=0.0)
SHARED = (
    Panel(
        "Gradient norm",
        "L2 norm",
        "Before clipping; spikes point to unstable steps.",
        (("grad_norm", ""),),
        floor=0.0,
    ),
    Panel("Learning rate", "rate", "As scheduled.", (("learning_rate", ""),), floor=0.0),
    Panel(
        "Throughput",
        "tokens / s",
        "Tokens trained per second of the whole step; dense: what separate sequences would be.",
        (("tokens_per_second", "tokens"), ("dense_tokens_per_second", "dense")),
        floor=0.0,
    ),
    Panel("MFU", "fraction", "Model FLOPs by the device's peak in bfloat16.", (("mfu", ""),), floor=0.0),
    Panel(
        "Memory",
        "GB",
        "Of rank 0: what torch reserved on the GPU; the process's resident set.",
        (("memory/reserved_gb", "GPU"), ("memory/resident_gb", "host")),
        floor=0.0,
    ),
)
PANELS: dict[str, tuple[Panel, ...]] = {
    "sft": (LOSS, *SHARED),
    "grpo": (
        Panel(
            "Reward and its parts",
            "reward",
            "Mean over completions; the parts are not weighted.",
            (("reward", "total"), ("rewards/*/mean", "")),
            floor=0.0,
        ),
        Panel("mIoU of the rollouts", "IoU", "Mean IoU of the sampled boxes.", (("miou", ""),), floor=0.0),
        Panel(
            "Difficulty weight φ",
            "weight",
            "Mean φ(mIoU): groups that are still hard count more; falls as boxes get better.",
            (("difficulty_weight", ""),),
        ),
        Panel(
            "KL to the reference",
            "nats per token",
            "k3 estimate; how far the policy has moved.",
            (("kl", ""),),
            floor=0.0,
        ),
        Panel(
            "Completion length",
            "tokens",
            "Mean over completions.",
            (("completions/mean_length", ""),),
            floor=0.0,
        ),
        Panel(
            "Wasted samples",
            "fraction",
            "Groups whose rewards are all equal teach nothing; cut-off completions have no end.",
            (("frac_reward_zero_std", "zero-std groups"), ("completions/clipped_ratio", "cut off")),
            floor=0.0,
        ),
        Panel(
            "Reward spread",
            "reward",
            "Standard deviation: within a group, what the advantage is made of; over all completions.",
            (("reward_group_std", "in groups"), ("reward_std", "all")),
            floor=0.0,
        ),
        Panel(
            "Clipped ratios",
            "fraction of tokens",
            "Tokens where clipping stopped the gradient; 0 with one update per rollout.",
            (
                ("clip_ratio/low_mean", "low"),
                ("clip_ratio/high_mean", "high"),
                ("clip_ratio/region_mean", "either"),
            ),
            floor=0.0,
        ),
        Panel(
            "Entropy",
            "nats per token",
            "Of the policy; a fall to 0 means it stopped exploring.",
            (("entropy", ""),),
            floor=0.0,
        ),
        Panel(
            "Loss",
            "loss",
            "Policy term and KL; near 0 by construction, read the reward instead.",
            (("loss", ""),),
        ),
        *SHARED,
        Panel(
            "Sampling vs training log-probs",
            "nats",
            "Largest difference in a step: shows that rollout and training agree.",
            (("sampling/sampling_logp_difference/max", ""),),
            log=True,
        ),
        Panel(
            "Row fill",
            "fraction",
            "Share of packed rows that holds tokens.",
            (("pack/fill", ""),),
            floor=0.0,
            ceiling=1.0,
        ),
    ),
}
