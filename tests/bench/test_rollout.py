"""bench.rollout at a small size: every variant is proved and timed, and a wrong one ends it."""

from __future__ import annotations

import pytest
import torch

from bench.device import Cpu
from bench.rollout import SIZES, make_engine, make_model, make_samples, ours, prove, run
from univg_fast.data.tokenizer import build_tokenizer

TINY = SIZES["tiny"]


def test_every_variant_is_proved_and_timed() -> None:
    rows = run(TINY, Cpu(), rounds=1, seconds=30)
    assert [row["variant"].split(",")[0] for row in rows] == ["generate", "generate", "univg", "univg"]
    assert all(row["logp_gap"] <= 1e-4 and row["rounds"] >= 1 and row["times_cpu"] > 0 for row in rows)
    assert max(row["times_wall"] for row in rows if row["variant"].startswith("generate")) == 1


def test_wrong_tokens_end_it() -> None:
    (model, _), samples = make_model(TINY, torch.device("cpu")), make_samples(TINY)
    engine = make_engine(model, build_tokenizer(["x"]), static=False)
    right = ours(engine, samples)
    with pytest.raises(SystemExit, match=r"wrong: 0.0% of the greedy tokens are those of right"):
        prove({"right": right, "wrong": lambda group, how: right(group, how) + 1}, TINY, engine, samples)
