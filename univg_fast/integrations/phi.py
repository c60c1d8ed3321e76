"""φ of a host's groups: the mean of a reward over a prompt's completions, its weight, and what that may multiply."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from univg_kernels import GrpoConfig, difficulty_weight


def of_means(miou: Tensor, config: GrpoConfig) -> Tensor:
    """[G] fp32 of mIoU [G], as config's difficulty, difficulty_power and normalize_difficulty say.

    NaN, of a group for which the reward had no value at all, gives 1.
    """
    known = ~miou.isnan()
    phi = torch.ones_like(miou, dtype=torch.float32)
    phi[known] = difficulty_weight(
        miou[known].float(),
        kind=config.difficulty,
        power=config.difficulty_power,
        normalize=config.normalize_difficulty,
    )
    return phi


def of_prompts(prompts: Sequence[str], ious: Sequence[float], config: GrpoConfig) -> Tensor:
    """[B] fp32 of completions whose prompts have these names, in any order; NaN as an IoU means no value."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(prompts))}
    at, values = torch.tensor([numbers[name] for name in prompts]), torch.tensor(ious, dtype=torch.float64)
    count, total = (
        values.new_zeros(len(numbers)).index_add(0, at, x) for x in ((~values.isnan()).double(), values.nan_to_num(0.0))
    )
    return of_means((total / count).float(), config)[at]


def refuse_negative(difficulty: str, where: str = "here") -> None:
    """ValueError for the one variant with which weighing advantages would be another loss."""
    if difficulty == "log":
        raise ValueError(
            f"difficulty must be 'exp' or 'power' {where}, got 'log': phi multiplies advantages, and 'log' is negative "
            "above mIoU = 0.98, where weighing advantages is not weighing the clipped loss"
        )


def refuse_kl_in_reward(setting: str, remedy: str) -> None:
    """ValueError: φ multiplies the policy term and not KL, which cannot be told apart in an advantage."""
    raise ValueError(
        f"phi multiplies advantages, and {setting} puts KL into the reward and so into them, where φ would weigh it, "
        f"too; {remedy}"
    )
