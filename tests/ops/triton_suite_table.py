"""The Triton faces of `policy_loss` and `grpo_loss` over the whole loss table, against fp64 truth and eager torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import univg_kernels as uk
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.draws import PAIRS, draws, make_rows
from ops.triton_device import DEVICE, moved
from torch import Tensor

SOFTMAX: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"softcap": 2.0},
    {"temperature": 1.6, "logit_scale": 0.3, "vocab_size": 33},
    {"temperature": 0.8, "softcap": 1.5, "logit_scale": 1.7, "vocab_size": 20},
]
Inputs = dict[str, Tensor]


def outcome(op: str, inputs: Inputs, backend: uk.Backend, **kwargs: Any) -> tuple[uk.GrpoOutput, tuple[Tensor, ...]]:
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    out = getattr(uk, op)(**leaves, backend=backend, **kwargs)
    if not out.loss.requires_grad:
        return out, tuple(torch.zeros_like(v) for v in leaves.values())
    loss = out.loss * 2.0
    return out, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)


def check(op: str, inputs: Inputs, assert_no_worse: Any, place: str, **kwargs: Any) -> None:
    dtype = next(iter(inputs.values())).dtype
    exact = {k: v.double() for k, v in inputs.items()}
    runs = ((inputs, "triton"), (inputs, "reference"), (exact, "reference"))
    (got, grads), (eager, eager_grads), (truth, true_grads) = (outcome(op, x, b, **kwargs) for x, b in runs)
    assert got.loss.dtype == got.metrics.dtype == got.logp.dtype == torch.float32
    assert_no_worse(f"logp, {place}", got.logp, eager.logp, truth.logp, dtype)
    # The loss is a sum of terms that cancel, each of them and each difference one of numbers of the size of logp: their
    # errors are judged on that scale, not on their own.
    size = max(1.0, float(truth.logp.abs().max())) if truth.logp.numel() else 0.0
    scales = {"loss": size, "logp_diff_max": size, "sampling_logp_diff_max": size, "kl_sum": size * len(truth.logp)}
    for i, name in enumerate(("loss", *uk.METRICS)):
        values = ((x.loss.detach() if name == "loss" else x.metrics[i - 1]) for x in (got, eager, truth))
        judged = (torch.stack([v.double(), v.new_tensor(scales.get(name, 0.0)).double()]) for v in values)
        assert_no_worse(f"{name}, {place}", *judged, dtype)
    for name, x, e, t in zip(inputs, grads, eager_grads, true_grads, strict=True):
        assert x.dtype == dtype
        assert_no_worse(f"d {name}, {place}", x, e, t, dtype)


def some_draws(loss: str, level: str, *, of_all: bool) -> list[tuple[int, uk.GrpoConfig, dict[str, str]]]:
    """The draws of which every axis has each choice; or a quarter of them, another one for the pair's neighbour."""
    first, step = (0, 1) if of_all else (PAIRS.index((loss, level)) % 4, 4)
    return [(i, *drawn) for i, drawn in enumerate(draws(loss, level, 11))][first::step]


@pytest.mark.parametrize(("loss", "level"), PAIRS)
def test_policy_loss(assert_no_worse: Any, loss: str, level: str) -> None:
    """Fewer for the loss types that differ in their aggregation only, and for the other levels."""
    new_branch = loss not in ("bnpo", "dr_grpo", "dapo", "luspo")
    for number, config, how in some_draws(loss, level, of_all=new_branch and level == "token"):
        logp, entropy, cu, rows = make_rows(number, how)
        dtype = torch.bfloat16 if number % 5 == 4 else torch.float32
        inputs = {"logp": logp.to(DEVICE, dtype), "entropy": entropy.to(DEVICE, dtype)}
        kwargs = moved(dict(cu_seqlens=torch.tensor(cu), config=config, **rows))
        check("policy_loss", inputs, assert_no_worse, f"draw {number}: {config}, {how}", **kwargs)


@pytest.mark.parametrize(("loss", "level"), PAIRS)
def test_grpo_loss(assert_no_worse: Any, loss: str, level: str) -> None:
    """What a pair leaves out, its neighbours and policy_loss have."""
    for number, config, how in some_draws(loss, level, of_all=False):
        config = replace(config, **SOFTMAX[number % len(SOFTMAX)])
        # Log-ratios of 20 make e^20 of every rounding of logp: a matter for policy_loss, which is given logp.
        how |= {"case": "usual"} if how["case"] == "far" else {}
        logp, _, cu, rows = make_rows(number + 50, how)
        dtype = torch.bfloat16 if number % 4 == 3 else torch.float32
        g = torch.Generator().manual_seed(number)
        logits = (torch.randn(len(logp), 41, generator=g) * 2).to(DEVICE, dtype)
        ids = torch.randint(0, 20, (len(logp),), generator=g)
        kwargs = moved(dict(token_ids=ids, cu_seqlens=torch.tensor(cu), config=config, **rows))
        truth = uk.grpo_loss(logits.double(), backend="reference", inplace=False, **kwargs).logp
        for name in ("old_logp", "ref_logp", "sampling_logp"):  # drawn around logp
            if name in kwargs:
                kwargs[name] = kwargs[name] + (truth - logp.to(DEVICE))
        place = f"draw {number}: {config}, {how}"
        check("grpo_loss", {"logits": logits}, assert_no_worse, place, inplace=False, **kwargs)


@st.composite
def problems(draw: Any) -> tuple[str, dict[str, Any]]:
    """Lengths (several blocks of a response, too), vocabularies, masks and settings of the losses that couple rows."""
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 5, 700]), min_size=1, max_size=4))
    loss, level = draw(st.sampled_from(PAIRS))
    settings_of_loss = dict(
        loss_type=loss,
        importance_sampling_level=level,
        max_completion_length=draw(st.integers(1, 900)),
        beta=draw(st.sampled_from([0.0, 0.2])),
        use_bias_correction_kl=draw(st.booleans()),
        entropy_coef=draw(st.sampled_from([0.0, 0.1])),
        top_entropy_quantile=draw(st.sampled_from([0.4, 1.0])),
        softcap=draw(st.sampled_from([None, 3.0])),
    )
    return draw(st.sampled_from(["none", "some", "all"])), dict(
        lengths=lengths, vocab=draw(st.integers(1, 70)), seed=draw(st.integers(0, 99)), config=settings_of_loss
    )


@settings(deadline=None, max_examples=8, derandomize=True)
@given(problems())
def test_any_shape_and_mask(make_case: Any, assert_no_worse: Any, problem: tuple[str, dict[str, Any]]) -> None:
    kept, made = problem
    config = uk.GrpoConfig(**made.pop("config"))
    case = make_case(groups=(len(made["lengths"]),), masked=kept == "some", **made)
    rows = moved(case.rows)
    if kept == "none":
        rows["mask"] = torch.zeros(len(case.token_ids), dtype=torch.bool, device=DEVICE)
    inputs, kwargs = case.arguments("policy_loss")
    entropy = -2 * inputs[0].detach()
    named = {"logp": inputs[0].detach().to(DEVICE).float(), "entropy": entropy.to(DEVICE).float()}
    cu = case.cu_seqlens.to(DEVICE)
    check("policy_loss", named, assert_no_worse, str(problem), cu_seqlens=cu, config=config, **rows)
    if len(case.token_ids) > 40:  # the interpreter takes 3 ms a row
        return
    ids, named = case.token_ids.to(DEVICE), {"logits": case.logits.to(DEVICE).float()}
    shared = dict(token_ids=ids, cu_seqlens=cu, config=config, inplace=False, **rows)
    check("grpo_loss", named, assert_no_worse, str(problem), **shared)
