"""Wrong input: ValueError that names op, argument, what was expected, what came, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops.faults import DEVICES, DTYPES, SHAPES, TOGETHER, VALUES, H, N, V, good, ones

FAULTS = [(op, *fault[1:]) for fault in SHAPES + DTYPES + DEVICES + VALUES + TOGETHER for op in fault[0]]


@pytest.mark.parametrize(("op", "wrong", "message"), FAULTS, ids=[f"{op}-{m[:36]}" for op, _, m in FAULTS])
def test_a_wrong_argument(op: str, wrong: dict[str, Any], message: str) -> None:
    getattr(uk, op)(**good(op))
    with pytest.raises(ValueError, match=message) as caught:
        getattr(uk, op)(**{**good(op), **wrong})
    assert str(caught.value).startswith(f"{op}: ")


def config(**settings: Any) -> Callable[[], Any]:
    return lambda: uk.GrpoConfig(**settings)


CONFIGS: list[tuple[Callable[[], Any], str]] = [
    (config(loss_type="ppo"), "loss_type must be one of 'grpo', .*'reinforce', got 'ppo'"),
    (config(importance_sampling_level="word"), "importance_sampling_level must be one of 'token', .* got 'word'"),
    (config(epsilon_low=-0.1), "epsilon_low must be finite and >= 0, got -0.1"),
    (config(temperature=0), "temperature must be finite and > 0, got 0"),
    (config(beta="0.04"), "beta must be a number, got '0.04'"),
    (config(beta=True), "beta must be a number, got True"),
    (config(beta=float("nan")), "beta must be finite and >= 0, got nan"),
    (config(softcap=-1.0), "softcap must be finite and > 0, got -1.0"),
    (config(max_completion_length=2.5), "max_completion_length must be a whole number >= 1 or None, got 2.5"),
    (config(k3_clamp=1), "k3_clamp must be True or False, got 1"),
    (config(top_entropy_quantile=1.5), r"top_entropy_quantile must be in \(0, 1\], got 1.5"),
    (
        config(importance_sampling_clip_min=4.0),
        "clip_min must not lie above importance_sampling_clip_max, got 4.0 and 3.0",
    ),
    (config(log_ratio_min=1.0, log_ratio_max=-1.0), "log_ratio_min must not lie above log_ratio_max, got 1.0 and -1.0"),
    (config(loss_type="dr_grpo"), "'dr_grpo' .* needs max_completion_length, got None; give the longest"),
    (config(loss_aggregation="seq-mean-token-sum-norm"), "needs max_completion_length, got None"),
    (config(loss_type="gmpo", importance_sampling_level="sequence"), "'gmpo' .*takes .*='token', got 'sequence'"),
    (lambda: uk.GrpoConfig.like("openrlhf"), r"\.like: codebase must be one of 'trl', .* got 'openrlhf'"),
    (config(difficulty="log", normalize_difficulty=True), "'log' cannot be normalised"),
    (
        lambda: uk.GrpoConfig.like("univg_r1", loss_type="gmpo"),
        r"must be that codebase's own \(grpo at token\), got 'gmpo'",
    ),
    (lambda: uk.GrpoConfig.like("ms_swift", off_policy_mask_threshold=1.0), "off_policy_mask_threshold must be None"),
    (
        lambda: uk.GrpoConfig.like("verl", delta=1.1),
        r"delta .* must be at least 1 \+ the upper clip ratio = 1.2",
    ),
]


@pytest.mark.parametrize(("make", "message"), CONFIGS, ids=[m[:36] for _, m in CONFIGS])
def test_a_wrong_setting(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert str(caught.value).startswith("GrpoConfig")


def test_a_wrong_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for op in ("grpo_loss", "policy_loss", "box_iou"):
        with pytest.raises(ValueError, match="resolve: backend must be one of 'auto', .*, got 'cuda_graph'"):
            getattr(uk, op)(**good(op), backend="cuda_graph")
        with pytest.raises(ValueError, match="backend 'triton' needs CUDA tensors, got cpu; .*TRITON_INTERPRET=1"):
            getattr(uk, op)(**good(op), backend="triton")


def test_an_unknown_row_argument() -> None:
    with pytest.raises(TypeError, match="policy_loss: unknown argument 'advantage'; expected rewards, accuracy, .*"):
        uk.policy_loss(ones(N), torch.tensor([0, N]), advantage=ones(1))  # type: ignore[call-arg]


@pytest.mark.parametrize("op", ["linear_grpo_loss", "linear_ce"])
def test_a_gradient_does_not_go_into_the_weight(op: str) -> None:
    arguments = good(op)
    with pytest.raises(ValueError, match="weight_grad must be a buffer of its own, got the memory of weight; make it"):
        getattr(uk, op)(**arguments, weight_grad=arguments["weight"].view(V, H))


def test_leaf_logits_are_not_overwritten() -> None:
    arguments = good("grpo_loss")
    arguments["logits"].requires_grad_()
    with pytest.raises(ValueError, match="grpo_loss: logits must not be a leaf .* pass inplace=False"):
        uk.grpo_loss(**arguments)
