"""Rollout: prompts in, G sampled completions each out; one prefill per prompt."""

from univg_fast.rollout.local import LocalEngine
from univg_fast.rollout.sampling import Sampling

__all__ = ["LocalEngine", "Sampling"]
