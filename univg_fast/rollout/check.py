"""Before the first step: do rollouts sample, and do they sample from the policy that is trained?"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from univg_fast.rollout.engine import RolloutEngine
from univg_fast.rollout.sampling import Sampling
from univg_fast.structs import Group, Sample

ALLOWED = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (0.1, 0.02)}  # |log-prob difference|: largest, mean
UNLIKELY = math.log(1e-6)


def check_rollout(
    engine: RolloutEngine,
    sample: Sample,
    temperature: float,
    logprobs: Callable[[Group], np.ndarray],
    dtype: torch.dtype,
    *,
    generations: int = 4,
    tokens: int = 16,
) -> str:
    """A line that says what was found; ValueError where rollout and training do not go together.

    `logprobs`: the training pass, the log-probs at `temperature` of all tokens of a group's responses, in order.
    Equal samples are an error only where the model itself says that they are not to be expected.
    """
    # without top-k and top-p, so that the samples' log-probs say how likely the samples are
    (group,) = engine.generate([sample], generations, Sampling(tokens, temperature))
    ids = tuple(c.token_ids for c in group)
    sampled = np.concatenate([c.logprobs for c in group]).astype(np.float64)
    different = len({x.tobytes() for x in ids})
    chance = float(group[0].logprobs.sum()) * (generations - 1)
    if different == 1 and chance < UNLIKELY:
        raise ValueError(
            f"rollout: expected different samples of {sample.record.source} at temperature {temperature}, got the same "
            f"one {generations} times, which has a probability of e^{chance:.0f}; look at the engine's "
            "seeds, and whether it decodes greedily"
        )
    gap = np.abs(logprobs(Group(sample, ids)).astype(np.float64) - sampled)
    most, mean = ALLOWED[dtype]
    if not (gap.max() <= most and gap.mean() <= mean):  # also reached by NaN
        raise ValueError(
            f"rollout: expected log-probs within {most} (mean {mean}) of training's for the same tokens in {dtype}, "
            f"got {gap.max():.2g} (mean {gap.mean():.2g}) on {sample.record.source}; the engine may hold other weights "
            "(sync_weights), another temperature, other image features or sizes, or wrong mRoPE positions"
        )
    return (
        f"rollout: {different} different samples of {generations}, log-probs within {gap.max():.1e} "
        f"(mean {gap.mean():.1e}) of training's"
    )
