"""The same cases under pytest-benchmark, for its options (comparison, histograms, saved runs):

    pytest bench/test_ops.py -k "grpo_loss and fp32" --benchmark-group-by=group

BENCH_SIZE is "cpu", "cuda" or "tiny"; by default that of the machine. Each variant is proved before it is timed.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from .cases import all_cases
from .device import find_device
from .shapes import DTYPES
from .verdict import Verdict, prove
from .work import Case, Work

DEVICE = find_device("auto")
ROUNDS = 5


def variants() -> list[Any]:
    """(case, variant) of all; which variants there are is asked of a small copy of the case."""
    found = []
    for case in all_cases(os.environ.get("BENCH_SIZE", DEVICE.kind)):
        s = case.shape
        small = replace(s, rows=s.length, vocab=min(s.vocab, 64), width=min(s.width, 8))
        names = case.build(small, DTYPES[case.dtype], DEVICE).variants
        found += [pytest.param(case, name, id=f"{case.name}-{name}".replace(" ", "_")) for name in names]
    return found


@lru_cache(1)
def proofs(case: Case) -> dict[str, Verdict]:
    return prove(case.build(case.shape.proof(), DTYPES[case.dtype], DEVICE), DTYPES[case.dtype])


@lru_cache(1)
def built(case: Case) -> Work:
    return case.build(case.shape, DTYPES[case.dtype], DEVICE)


@pytest.mark.parametrize(("case", "name"), variants())
def test_op(benchmark: Any, case: Case, name: str) -> None:
    verdict = proofs(case)[name]
    assert verdict.right, verdict.problem
    prepare = built(case).variants[name].prepare
    benchmark.group = case.name

    def run(prepared: Any) -> Any:
        out = prepared()
        DEVICE.finish()
        return out

    benchmark.pedantic(run, setup=lambda: ((prepare(),), {}), rounds=ROUNDS, warmup_rounds=1)
