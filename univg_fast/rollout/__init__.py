"""Rollout: prompts in, G sampled completions each out; one prefill per prompt."""

from univg_fast.rollout.check import check_rollout
from univg_fast.rollout.engine import RolloutEngine
from univg_fast.rollout.local import LocalEngine
from univg_fast.rollout.sampling import Sampling
from univg_fast.rollout.stopping import stop_ids

__all__ = ["LocalEngine", "RolloutEngine", "Sampling", "check_rollout", "stop_ids"]
