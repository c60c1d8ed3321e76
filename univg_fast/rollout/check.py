"""Before the first step: do rollouts sample, and do they sample from the policy that is trained?"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from univg_fast.rollout.engine import RolloutEngine
from univg_fast.rollout.sampling import Sampling
from univg_fast.structs import Group, Sample

ALLOWED = 1e-4  # |log-prob difference| in float32 at temperature 1, of any token
# The mean difference in any other type: ROUNDING * eps * sqrt(layers), as each layer adds roundings of the residual
# stream to those before it, at random; eps is the type's. Sound engines reach half of that: 4.3 in bfloat16 at 3, 12
# and 28 layers alike, for logits with a standard deviation up to 7. Or so many times the model's own noise.
ROUNDING, TIMES = 8.0, 4.0
UNLIKELY = math.log(1e-6)


def check_rollout(
    engine: RolloutEngine,
    sample: Sample,
    temperature: float,
    logprobs: Callable[[Group], np.ndarray],
    dtype: torch.dtype,
    layers: int,
    *,
    generations: int = 4,
    tokens: int = 16,
) -> str:
    """A line that says what was found; ValueError where rollout and training do not go together.

    `logprobs`: the training pass, the log-probs at `temperature` of all tokens of a group's responses, in order.
    `layers`: of the language model. Equal samples are an error only where the model itself says that they are not to be
    expected. What rounding to bfloat16 does to log-probs also depends on the model, so it is measured, too: the same
    tokens are scored again, each response in a row of its own.
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
    trained = logprobs(Group(sample, ids)).astype(np.float64)
    gap, sharper = np.abs(trained - sampled), 1 / min(temperature, 1.0)  # a low temperature magnifies rounding
    if dtype == torch.float32:
        found, limit, allowed = gap.max(), ALLOWED * sharper, ""
    else:
        alone = np.concatenate([logprobs(Group(sample, (x,))) for x in ids]).astype(np.float64)
        noise = np.abs(trained - alone).mean()
        rounding = ROUNDING * torch.finfo(dtype).eps * math.sqrt(layers) * sharper
        found, limit = gap.mean(), max(rounding, TIMES * noise)
        allowed = f"in the mean, as training's own differ by {noise:.2g} from row to row, "
    if not found <= limit:  # also reached by NaN
        raise ValueError(
            f"rollout: expected log-probs within {limit:.2g} of training's for the same tokens in {dtype}, {allowed}"
            f"got {gap.max():.2g} (mean {gap.mean():.2g}) on {sample.record.source}; the engine may hold other weights "
            "(sync_weights), another temperature, other image features or sizes, or wrong mRoPE positions"
        )
    return (
        f"rollout: {different} different samples of {generations}, log-probs within {gap.max():.1e} "
        f"(mean {gap.mean():.1e}) of training's"
    )
