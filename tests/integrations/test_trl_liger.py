"""TRL's Liger era: the loss object against Liger's own; an older trainer, in a process that imports that release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
from torch import Tensor

from univg_fast.integrations.patching import Patch
from univg_fast.integrations.trl_liger import LigerLoss, patch_liger

ROOT = Path(__file__).resolve().parents[2]
OLDER = Path(sys.prefix) / "trl_liger"  # `make setup` puts an older release there, bare
B, L, H, V = 5, 6, 16, 37


def make_inputs(seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(L) < torch.tensor([6, 4, 0, 1, 5])[:, None]
    mask[0, 2] = False  # a tool's word
    logp = -3.6 + 0.4 * torch.randn(B, L, generator=g)
    return {
        "_input": torch.randn(B, L, H, generator=g).requires_grad_(),
        "lin_weight": (0.2 * torch.randn(V, H, generator=g)).requires_grad_(),
        "selected_token_ids": torch.randint(0, V, (B, L), generator=g),
        "attention_mask": mask.long(),
        "advantages": torch.tensor([1.2, -0.7, 0.4, -1.1, 0.5]),
        "bias": (0.1 * torch.randn(V, generator=g)).requires_grad_(),
        "old_per_token_logps": logp,
        "ref_per_token_logps": logp + 0.3 * torch.randn(B, L, generator=g),
    }


def answer(loss: Any, inputs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """([loss, metrics…], gradients)."""
    value, metrics = loss(**inputs)
    leaves = [inputs[name] for name in ("_input", "lin_weight", "bias")]
    return [value.detach(), *metrics], list(torch.autograd.grad(value, leaves))


def check(inputs: dict[str, Any], **settings: Any) -> None:
    theirs = LigerFusedLinearGRPOLoss(compiled=False, **settings)
    for ours, other in zip(answer(LigerLoss(theirs), inputs), answer(theirs, inputs), strict=True):
        assert len(ours) == len(other)
        for mine, one in zip(ours, other, strict=True):
            scale = one.abs().max().item()
            torch.testing.assert_close(mine, one, rtol=1e-5, atol=1e-5 * scale + 1e-8, check_dtype=False)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"])
def test_loss_gradients_and_metrics_are_ligers(loss_type: str) -> None:
    inputs = make_inputs()
    difference = 0.4 * torch.randn(B, L, generator=torch.Generator().manual_seed(1)) * inputs["attention_mask"]
    ratios = (None, difference.exp(), difference.sum(1, keepdim=True).exp())
    clips = loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
    levels = ("sequence",) if loss_type == "luspo" else ("token", "sequence") if clips else ("token",)
    betas = (0.0,) if loss_type == "luspo" else (0.0, 0.2)
    for level, beta, ratio, delta in product(levels, betas, ratios, (None, 1.1) if clips else (None,)):
        settings = {"loss_type": loss_type, "importance_sampling_level": level, "beta": beta, "delta": delta}
        settings |= {"temperature": 1.2, "epsilon_high": 1.1 if loss_type == "cispo" else 0.15, "epsilon_low": 0.1}
        settings |= {"max_completion_length": 9, "use_bias_correction_kl": ratio is None}
        given = inputs | {"vllm_is_ratio": ratio}
        if loss_type == "luspo" and ratio is not None and ratio.shape[1] > 1:
            with pytest.raises(ValueError, match=r"of a completion \[B, 1\] here, got one of each token \[5, 6\]"):
                check(given, **settings)
        else:
            check(given, **settings)


def test_items_of_the_generation_batch_and_no_older_policy() -> None:
    inputs = make_inputs(2) | {"num_items_in_batch": torch.tensor(41), "old_per_token_logps": None, "bias": None}
    theirs = LigerFusedLinearGRPOLoss(compiled=False, beta=0.1)
    values = [loss(**inputs) for loss in (LigerLoss(theirs), theirs)]
    torch.testing.assert_close(values[0][0], values[1][0], rtol=1e-5, atol=1e-7)
    gradients = [torch.autograd.grad(value, inputs["_input"])[0] for value, _ in values]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_phi_weighs_each_completions_policy_term() -> None:
    """Its loss is a sum over completions: Liger's own, with one advantage at a time."""
    inputs, phi = make_inputs(), torch.tensor([1.5, 0.2, 1.0, -0.4, 2.0])
    theirs = LigerFusedLinearGRPOLoss(compiled=False, beta=0.0, loss_type="grpo")
    ours = LigerLoss(theirs)
    ours.phi = phi
    value, _ = ours(**inputs)
    alone = [theirs(**inputs | {"advantages": inputs["advantages"] * one})[0] for one in torch.eye(B)]
    expected = sum(weight * part for weight, part in zip(phi, alone, strict=True))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(x, inputs["lin_weight"])[0] for x in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_what_liger_has_otherwise_is_refused() -> None:
    with pytest.raises(
        ValueError, match="luspo' needs importance_sampling_level='sequence' and beta=0 here, got 'token'"
    ):
        LigerLoss(LigerFusedLinearGRPOLoss(loss_type="luspo"))
    with pytest.raises(ValueError, match="loss_type must be one of .*, got 'gmpo'"):
        LigerLoss(LigerFusedLinearGRPOLoss(loss_type="gmpo"))
    with pytest.raises(ValueError, match=r"only with GRPOConfig\(use_liger_kernel=True\)"):
        patch_liger(SimpleNamespace(args=SimpleNamespace(use_liger_kernel=False)), Patch(), weighed=False)
    older = LigerFusedLinearGRPOLoss()
    del older.use_bias_correction_kl
    with pytest.raises(ValueError, match="LigerFusedLinearGRPOLoss has no setting use_bias_correction_kl, so that"):
        LigerLoss(older)


@pytest.mark.skipif(not OLDER.is_dir(), reason=f"needs an older trl in {OLDER}, where `make setup` puts it")
def test_some_steps_of_an_older_trainer(tmp_path: Path) -> None:
    paths = [OLDER, ROOT, ROOT / "kernels", ROOT / "tests", *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tests/integrations/trl_liger_run.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (OLDER / f"trl-{found['version']}.dist-info").is_dir()
    logs = found["logs"]
    assert len(logs["theirs"]) == 2 and "clip_ratio" in logs["theirs"][0] and logs["theirs"][0]["kl"] > 0
    for ours, theirs in zip(logs["ours"], logs["theirs"], strict=True):
        assert ours == pytest.approx(theirs, rel=5e-5, abs=1e-6)
    assert found["gradient_error"] < 5e-5
    assert abs(found["phi"] - 1) > 1e-3 and 1 < logs["phi"][0]["difficulty_weight"] < 2.7183
