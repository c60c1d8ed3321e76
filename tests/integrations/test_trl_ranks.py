"""TRL's own GRPOTrainer on two real ranks, with and without the drop-in: DDP, FSDP2 and ZeRO-3."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="of the extra [dev]")

Found = dict[str, dict[str, Any]]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first test waits for all runs
HOSTS = ("ddp", "fsdp2", "zero3")


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, python_launcher: Callable[..., subprocess.CompletedProcess[str]]
) -> Found:
    """One torchrun for all: by case, what each side logged and how far its gradients are off."""
    worker = Path(__file__).with_name("trl_ranks_run.py")
    done = python_launcher(str(worker), str(tmp_path_factory.mktemp("ranks")), ranks=2, timeout=560)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {row["case"]: row for row in rows}


def check(case: dict[str, Any], ours: str, theirs: str, rtol: float) -> None:
    """The same logged numbers (φ's own aside), and every parameter's gradient, of all ranks and steps."""
    assert case["errors"][ours] < rtol
    for mine, other in zip(case["logs"][ours], case["logs"][theirs], strict=True):
        assert {name: mine[name] for name in other} == pytest.approx(other, rel=rtol, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("host", HOSTS)
def test_two_ranks(found: Found, host: str) -> None:
    """Groups of four over ranks of six: φ, metrics and normalisers are of all ranks."""
    case = found[f"{host} plain"]
    for ours, theirs in (("patch", "theirs"), ("patch_logprobs", "theirs"), ("phi", "by_hand")):
        check(case, ours, theirs, rtol=1e-5)
    plain, weighed = case["logs"]["patch"], case["logs"]["phi"]
    assert len(plain) == 2 and plain[1]["clip_ratio/region_mean"] > 0 < plain[1]["kl"]
    assert 1 < weighed[0]["difficulty_weight"] < 2.7183 and 0 < weighed[0]["miou"] < 1
    assert weighed[0]["grad_norm"] != pytest.approx(plain[0]["grad_norm"], rel=1e-2)


@pytest.mark.parametrize("model", ["tied", "lora"])
@pytest.mark.parametrize("host", HOSTS)
def test_two_ranks_with_phi(found: Found, host: str, model: str) -> None:
    """The head is the embedding; it is frozen, and layers are checkpointed, as by TRL's default."""
    check(found[f"{host} {model}"], "phi", "by_hand", rtol=1e-5)


@pytest.mark.parametrize("host", ["ddp", "zero3"])
def test_a_rank_without_a_token_that_counts(found: Found, host: str) -> None:
    check(found[f"{host} masked"], "phi", "by_hand", rtol=5e-5)  # 14 tokens are all: sums of less
    assert found[f"{host} masked"]["logs"]["phi"][0]["completions/clipped_ratio"] == pytest.approx(11 / 12)


@pytest.mark.parametrize("host", HOSTS)
def test_two_ranks_in_bf16(found: Found, host: str) -> None:
    """Autocast, FSDP2's mixed precision, and DeepSpeed's weights of bf16."""
    check(found[f"{host} bf16"], "phi", "by_hand", rtol=4 * torch.finfo(torch.bfloat16).eps)
