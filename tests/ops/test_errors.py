"""Wrong input: ValueError that names op, argument, what was expected, what came, and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import univg_kernels as uk

N, V, H, B = 6, 10, 4, 3


def good() -> dict[str, Any]:
    return dict(
        logits=torch.zeros(N, V),
        token_ids=torch.zeros(N, dtype=torch.int64),
        cu_seqlens=torch.tensor([0, 2, 4, 6]),
        advantages=torch.ones(B),
    )


BAD: list[tuple[dict[str, Any], str]] = [
    (dict(logits=torch.zeros(2, 3, V)), r"logits must be of shape \[any, any\], got \[2, 3, 10\]; flatten"),
    (dict(logits=torch.zeros(N, V, dtype=torch.int64)), r"logits must be float64 or .*, got int64"),
    (dict(logits=[[0.0]]), "logits must be a tensor, got list"),
    (dict(logits=torch.zeros(N, 0)), "logits must have at least one column"),
    (dict(token_ids=torch.zeros(5, dtype=torch.int64)), r"token_ids must be of shape \[6\], got \[5\]"),
    (dict(token_ids=torch.zeros(N)), "token_ids must be int64 or int32, got float32"),
    (
        dict(token_ids=torch.tensor([0, 1, 2, 3, 4, 10])),
        r"token_ids must be in \[0, 10\), got values from 0 to 10",
    ),
    (dict(token_ids=torch.tensor([0, 1, 2, -100, 4, 5])), r"got values from -100 to 5; .*mask"),
    (
        dict(token_ids=torch.zeros(N, dtype=torch.int64, device="meta")),
        "token_ids must be on cpu .*, got meta; move",
    ),
    (
        dict(cu_seqlens=torch.tensor([0, 2, 4, 5])),
        r"cu_seqlens must end at 6 \(the number of rows N\), got 5; build",
    ),
    (dict(cu_seqlens=torch.tensor([0, 4, 2, 6])), "cu_seqlens must begin with 0 and never fall, got"),
    (dict(cu_seqlens=torch.tensor([1, 2, 4, 6])), "cu_seqlens must begin with 0"),
    (dict(cu_seqlens=torch.tensor([], dtype=torch.int64)), "cu_seqlens must hold at least one offset"),
    (dict(advantages=torch.ones(N)), r"advantages must be of shape \[3\], got \[6\]; one value per response"),
    (dict(advantages=None), "give either rewards with cu_groups .* got neither"),
    (dict(rewards=torch.ones(B), cu_groups=torch.tensor([0, 3])), "got both"),
    (dict(advantages=None, rewards=torch.ones(B)), r"rewards need cu_groups \[K\+1\]"),
    (dict(accuracy=torch.ones(B)), "cu_groups and accuracy belong to rewards"),
    (dict(advantages=None, rewards=torch.ones(B), cu_groups=torch.tensor([0, 2])), "cu_groups must end at 3"),
    (dict(old_logp=torch.zeros(B)), r"old_logp must be of shape \[6\], got \[3\]; one value per row"),
    (dict(ref_logp=torch.zeros(N, dtype=torch.int64)), "ref_logp must be float64"),
    (dict(mask=torch.ones(N)), "mask must be bool, got float32"),
    (dict(denominator=0), "denominator must be a finite number > 0, got 0"),
    (dict(backend="cuda"), "backend must be one of 'auto', 'triton', 'cpp', 'reference', got 'cuda'"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_grpo_loss(wrong: dict[str, Any], message: str) -> None:
    uk.grpo_loss(**good())  # what is changed below is the only fault
    with pytest.raises(ValueError, match=message) as caught:
        uk.grpo_loss(**{**good(), **wrong})
    assert str(caught.value).startswith("resolve: " if "backend" in wrong else "grpo_loss: ")


BAD_LINEAR: list[tuple[dict[str, Any], str]] = [
    (
        dict(weight=torch.zeros(V, H + 1)),
        r"weight must be of shape \[any, 4\], got \[10, 5\]; weight is \[V, H\]",
    ),
    (
        dict(weight=torch.zeros(V, H, dtype=torch.bfloat16)),
        "weight must be float32, got bfloat16; .* of hidden's dtype",
    ),
    (dict(weight=torch.zeros(0, H)), "weight must have at least one row.*GatheredParameters"),
    (dict(bias=torch.zeros(H)), r"bias must be of shape \[10\], got \[4\]"),
    (
        dict(hidden=torch.zeros(1, N, H)),
        r"hidden must be of shape \[any, any\], got \[1, 6, 4\]; pick the scored rows",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_LINEAR, ids=[m[:40] for _, m in BAD_LINEAR])
@pytest.mark.parametrize("op", ["linear_grpo_loss", "linear_logprob", "linear_ce"])
def test_linear_ops(op: str, wrong: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = dict(hidden=torch.zeros(N, H), weight=torch.zeros(V, H), token_ids=good()["token_ids"])
    if op == "linear_grpo_loss":
        arguments |= dict(cu_seqlens=good()["cu_seqlens"], advantages=torch.ones(B))
    if op == "linear_ce":
        arguments["row_weight"] = torch.ones(N)
    getattr(uk, op)(**arguments)
    with pytest.raises(ValueError, match=f"{op}: {message}"):
        getattr(uk, op)(**{**arguments, **wrong})


ZEROS = torch.zeros(2)
OTHER: list[tuple[Any, str]] = [
    (
        lambda: uk.selective_logprob(torch.zeros(2, 3), ZEROS.long(), temperature=0.0),
        "selective_logprob: temperature must be a finite number > 0, got 0.0",
    ),
    (
        lambda: uk.difficulty_weight(ZEROS, kind="cubic"),
        "difficulty_weight: kind must be one of 'exp', .* got 'cubic'",
    ),
    (
        lambda: uk.group_advantage(ZEROS, torch.tensor([0, 3])),
        "group_advantage: cu_groups must end at 2",
    ),
    (
        lambda: uk.box_iou(torch.zeros(2, 4), torch.zeros(3, 4)),
        r"box_iou: boxes2 must be of shape \[2, 4\], got \[3, 4\]",
    ),
    (
        lambda: uk.box_iou(torch.zeros(2, 4), torch.zeros(2, 4), kind="giou", convention="univg_r1"),
        "kind 'giou' needs convention 'continuous'",
    ),
    (
        lambda: uk.policy_loss(ZEROS, torch.tensor([0, 2]), advantages=torch.ones(1), backend="triton"),
        "backend 'triton' needs CUDA tensors, got cpu; .*TRITON_INTERPRET=1",
    ),
    (lambda: uk.GrpoConfig(loss_type="dapo"), "GrpoConfig: loss_type must be one of 'grpo', got 'dapo'"),
    (lambda: uk.GrpoConfig(importance_sampling_level="sequence"), "one of 'token', got 'sequence'"),
    (lambda: uk.GrpoConfig(epsilon_low=-0.1), "epsilon_low must be finite and >= 0.0, got -0.1"),
    (lambda: uk.GrpoConfig(temperature=0), "GrpoConfig: temperature must be finite and > 0.0, got 0"),
    (lambda: uk.GrpoConfig(beta="0.04"), "GrpoConfig: beta must be a number, got '0.04'"),  # type: ignore[arg-type]
    (lambda: uk.GrpoConfig(beta=float("nan")), "GrpoConfig: beta must be finite"),
]


@pytest.mark.parametrize(("call", "message"), OTHER, ids=[m[:40] for _, m in OTHER])
def test_the_other_doors(call: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=message):
        call()
