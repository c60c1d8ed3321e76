"""Run by test_zero.py under torchrun: weights in buckets, and rollouts from a copy; rank 0 writes a JSON report."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))
from engine_worker import SHARD_EVERYTHING
from tiny import add_adapters, random_sample, tiny_model

from univg_fast import distributed
from univg_fast.config import DeepSpeedConfig, OptimConfig
from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.rollout import LocalEngine, Sampling
from univg_fast.train.engine import make_engine, release
from univg_fast.train.zero import declare_head, plain_copy, weight_buckets

MAX_BYTES = 200_000


def look(stage: int, adapters: bool) -> dict[str, Any]:
    """What the buckets hold, and whether a rollout with them is that of the whole model."""
    model = tiny_model()
    if adapters:
        add_adapters(model)
    whole, plain = copy.deepcopy(model), plain_copy(model, stage)
    want = {name: weight for bucket in weight_buckets(whole) for name, weight in bucket.items()}
    engine = make_engine(model, OptimConfig(), DeepSpeedConfig(zero_stage=stage, config=SHARD_EVERYTHING), 1)
    declare_head(model, stage)
    names: list[str] = []
    sizes, right = [], True
    for bucket in weight_buckets(model, MAX_BYTES):
        names += bucket
        sizes.append((len(bucket), sum(x.numel() * x.element_size() for x in bucket.values())))
        right &= all(torch.equal(weight, want[name]) for name, weight in bucket.items())
    rollout = LocalEngine(plain, build_tokenizer(["x"]), -1, own_weights=plain is not model)
    rollout.sync_weights(weight_buckets(model, MAX_BYTES))
    again = []
    for bucket in weight_buckets(model, MAX_BYTES, trained_only=True):
        again += bucket
        right &= all(torch.equal(weight, want[name]) for name, weight in bucket.items())
    rollout.sync_weights(weight_buckets(model, MAX_BYTES, trained_only=True))
    rng = np.random.default_rng(distributed.rank())
    # as many prompts as the rank has hands, of different lengths: nobody waits for anybody
    samples = [random_sample(rng, [(4, 4)] * (1 + distributed.rank())) for _ in range(1 + distributed.rank())]
    how = Sampling(6 + distributed.rank(), temperature=0)
    got, expected = (
        rollout.generate(samples, 2, how),
        LocalEngine(whole, rollout.tokenizer, -1).generate(samples, 2, how),
    )
    same = [c.token_ids.tolist() for g in got for c in g] == [c.token_ids.tolist() for g in expected for c in g]
    release(engine)
    return {
        "names": names,
        "again": again,
        "expected": sorted(want),
        "sizes": sizes,
        "max_bytes": MAX_BYTES,
        "right": all(distributed.gather_objects(right)),
        "same": all(distributed.gather_objects(same)),
        "copied": plain is not model,
    }


def main() -> None:
    distributed.init(timeout_s=300)
    report = {f"{stage}-{adapters}": look(stage, adapters) for stage in (1, 3) for adapters in (False, True)}
    if distributed.is_main():
        Path(sys.argv[1]).write_text(json.dumps(report))


if __name__ == "__main__":
    distributed.run(main)
