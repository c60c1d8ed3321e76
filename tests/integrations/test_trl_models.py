"""TRL's own GRPOTrainer on models that are not plain fp32 ones: LoRA by peft, mixture of experts, bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="of the extra [dev]")
import peft
from integrations import trl_problem
from integrations.trl_problem import SMALL, Run, assert_same
from transformers import MixtralConfig, Qwen3MoeConfig

from univg_fast.integrations.trl import patch

MOE = {
    "qwen3_moe": Qwen3MoeConfig(
        **SMALL, head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, router_aux_loss_coef=0.3
    ),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.3),
}


def both(folder: Path, phi: str | None = None, **settings: Any) -> tuple[Run, Run]:
    """(patched, as it comes): two steps of one batch of completions; with φ the latter has it worked out by hand."""
    settings = {"num_iterations": 2, "max_steps": 2} | settings
    plain = trl_problem.trainer(folder / "theirs", **settings)
    if phi:
        trl_problem.weigh_by_hand(plain)
    theirs = trl_problem.run(plain)
    made = trl_problem.trainer(folder / "ours", **settings)
    with patch(made, phi=phi):
        logged, gradients = trl_problem.run(made)
    if phi:
        assert logged[0].pop("difficulty_weight") > 1 and 0 < logged[0].pop("miou") < 1
    return (logged, gradients), theirs


@pytest.mark.parametrize("head", [False, True])
def test_lora(tmp_path: Path, head: bool) -> None:
    """The policy without its adapter is the reference; the head is frozen, or a trained copy beside the reference's."""
    adapter = peft.LoraConfig(
        r=4,
        target_modules="all-linear",
        modules_to_save=["lm_head"] if head else None,
        init_lora_weights=False,  # at once off the reference
    )
    ours, theirs = both(tmp_path, phi="iou", peft_config=adapter, gradient_checkpointing=True)
    assert_same(ours, theirs)
    trained = set(theirs[1][0])
    assert sum("lora_" in name for name in trained) == 28 and any("lm_head" in name for name in trained) == head
    assert theirs[0][0]["kl"] > 1e-3 and all(gradient.any() for gradient in theirs[1][0].values())


@pytest.mark.parametrize("family", MOE)
def test_the_auxiliary_loss_of_a_mixture_of_experts(tmp_path: Path, family: str) -> None:
    ours, theirs = both(tmp_path, phi="iou", model=MOE[family])
    assert_same(ours, theirs)
    assert theirs[0][0]["aux_loss"] > 0.5
    (routers,) = {tuple(name for name in step if ".gate.weight" in name) for step in ours[1]}
    assert len(routers) == 2 and all(ours[1][0][name].any() for name in routers)


@pytest.mark.parametrize("settings", [{"bf16": True}, {"dtype": torch.bfloat16}], ids=["autocast", "weights"])
def test_bf16(tmp_path: Path, settings: dict[str, Any]) -> None:
    """TRL's bf16=True, which is fp32 weights under autocast, and weights of bf16: roundings off TRL's own."""
    ours, theirs = both(tmp_path, phi="iou", max_steps=1, **settings)  # a rounding more takes ratios over the clip
    assert_same(ours, theirs, rtol=4 * torch.finfo(torch.bfloat16).eps)
    assert theirs[0][0]["kl"] > 1e-2 and all(gradient.any() for gradient in theirs[1][0].values())
