"""The policy's weights for rollout, whole under every ZeRO stage, with and without adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import VOCAB, add_adapters, tiny_model

from univg_fast.model import load_model
from univg_fast.train.zero import weight_buckets


@pytest.fixture(scope="module")
def report(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("zero") / "report.json"
    done = launch("zero_worker.py", path, world=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("adapters", [False, True], ids=["", "adapters"])
@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_send_whole_weights_and_roll_out_with_them(report: Any, stage: int, adapters: bool) -> None:
    found = report[f"{stage}-{adapters}"]
    assert sorted(found["names"]) == found["expected"] and found["right"] and found["same"]
    assert len(found["sizes"]) > 3
    assert all(count == 1 or size <= found["max_bytes"] for count, size in found["sizes"])
    assert found["copied"] == (stage == 3)


def test_names_are_those_of_transformers_and_adapters_come_merged() -> None:
    plain = load_model("qwen2_vl_tiny", vocab=VOCAB)
    model = tiny_model()
    wrapped = add_adapters(model)
    sent = {name: weight.clone() for bucket in weight_buckets(model) for name, weight in bucket.items()}
    assert list(sent) == [name for name, _ in plain.named_parameters()]
    with wrapped.disable_adapter():
        base = {name: weight for bucket in weight_buckets(model) for name, weight in bucket.items()}
    changed = {name for name in sent if not torch.equal(sent[name], base[name])}
    assert changed == {name for name in sent if "language_model" in name and name.endswith("_proj.weight")}
    merged = dict(wrapped.merge_and_unload().named_parameters())
    assert all(torch.allclose(sent[name], merged[name], rtol=0, atol=1e-6) for name in sent)


def test_adapters_that_are_merged_already_are_not_merged_again() -> None:
    model = tiny_model()
    wrapped = add_adapters(model)
    want = {name: weight.clone() for bucket in weight_buckets(model) for name, weight in bucket.items()}
    wrapped.merge_adapter()
    got = {name: weight for bucket in weight_buckets(model) for name, weight in bucket.items()}
    assert list(got) == list(want)
    assert all(torch.allclose(got[name], want[name], rtol=0, atol=1e-6) for name in want)
