"""Random shapes and settings: the C++ face equals the specification in fp64."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
import univg_kernels as uk
from hypothesis import given, settings
from hypothesis import strategies as st
from univg_kernels import _linear_head


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    b = sum(groups)
    lengths = draw(st.lists(st.integers(0, 5), min_size=b, max_size=b))
    n, vocab = sum(lengths), draw(st.sampled_from([1, 2, 17, 1025]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    index = draw(st.sampled_from([torch.int32, torch.int64]))
    rows: dict[str, Any] = {"cu_seqlens": torch.tensor([0, *lengths], dtype=index).cumsum(0).to(index)}
    if draw(st.booleans()):
        rows |= {"advantages": rand(b) * 4 - 2, "phi": rand(b) * 4 - 2}
    else:
        equal = draw(st.booleans())
        rows |= {
            "rewards": torch.full((b,), 0.1, dtype=torch.float64) if equal else rand(b),
            "accuracy": torch.ones(b, dtype=torch.float64) if draw(st.booleans()) else rand(b),
            "cu_groups": torch.tensor([0, *groups], dtype=index).cumsum(0).to(index),
        }
    for name in ("old_logp", "ref_logp"):
        if draw(st.booleans()):
            rows[name] = -4 * rand(n)
    if draw(st.booleans()):
        rows["mask"] = rand(n) > draw(st.sampled_from([0.0, 0.5, 1.0]))
    config = uk.GrpoConfig(
        delta=draw(st.sampled_from([None, 1.1, 4.0])),
        epsilon_low=draw(st.sampled_from([0.0, 0.2])),
        epsilon_high=draw(st.sampled_from([0.0, 0.3])),
        beta=draw(st.sampled_from([0.0, 0.04])),
        temperature=draw(st.sampled_from([0.6, 1.0])),
        difficulty=draw(st.sampled_from(["exp", "power", "log", "none"])),
        normalize_difficulty=draw(st.booleans()),
        scale_rewards=draw(st.sampled_from(["group", "batch", "none"])),
    )
    return dict(
        hidden=rand(n, 4) * 8 - 4,
        weight=rand(vocab, 4) * 2 - 1,
        token_ids=torch.randint(0, vocab, (n,), generator=g).to(index),
        rows=rows,
        config=config,
    )


@settings(deadline=None, max_examples=80)
@given(problems())
def test_cpp_equals_reference(p: dict[str, Any]) -> None:
    def outcome(linear: bool, backend: str) -> list[torch.Tensor]:
        hidden, weight = (p[k].clone().requires_grad_() for k in ("hidden", "weight"))
        shared = dict(p["rows"], token_ids=p["token_ids"], config=p["config"], backend=backend)
        out = uk.linear_grpo_loss(hidden, weight, **shared) if linear else uk.grpo_loss(hidden @ weight.T, **shared)
        return [*out, *torch.autograd.grad(out.loss, [hidden, weight])]

    for linear in (False, True):
        with patch.object(_linear_head, "default_chunk_rows", lambda num_rows, vocab: 3):
            got = outcome(linear, "cpp")
        want = outcome(linear, "reference")
        for name, x, y in zip(("loss", "metrics", "logp", "d hidden", "d weight"), got, want, strict=True):
            tolerance = 1e-6 if name in ("metrics", "logp") else 1e-10  # fp32 results
            torch.testing.assert_close(
                x.double(), y.double(), rtol=tolerance, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )


@settings(deadline=None, max_examples=40)
@given(problems(), st.integers(0, 2**31))
def test_micro_batches_add_up(p: dict[str, Any], seed: int) -> None:
    """With the global number of responses, any split into responses gives the loss, gradient and metrics of
    the whole."""
    rows, logits = p["rows"], p["hidden"] @ p["weight"].T
    cu = rows["cu_seqlens"].long()
    b = len(cu) - 1
    if "rewards" in rows:  # advantages belong to whole groups: make them first, as a trainer does
        stats = uk.group_advantage(rows["rewards"], rows["cu_groups"], accuracy=rows["accuracy"], config=p["config"])
        factors = {"advantages": stats.advantages, "phi": stats.phi}
    else:
        factors = {k: rows[k] for k in ("advantages", "phi")}
    cut = int(torch.randint(0, b + 1, (), generator=torch.Generator().manual_seed(seed)))

    def part(first: int, last: int) -> tuple[uk.GrpoOutput, torch.Tensor]:
        t = slice(int(cu[first]), int(cu[last]))
        z = logits[t].clone().requires_grad_()
        per_token = {k: rows[k][t] for k in ("old_logp", "ref_logp", "mask") if k in rows}
        per_response = {k: v[first:last] for k, v in factors.items()}
        out = uk.grpo_loss(
            z, p["token_ids"][t], cu[first : last + 1] - cu[first], denominator=max(b, 1), inplace=False,
            config=p["config"], **per_token, **per_response,
        )  # fmt: skip
        return out, torch.autograd.grad(out.loss, z)[0]

    (whole, whole_grad), (one, one_grad), (two, two_grad) = part(0, b), part(0, cut), part(cut, b)
    torch.testing.assert_close(one.loss + two.loss, whole.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([one_grad, two_grad]), whole_grad, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(uk.combine_metrics(one.metrics, two.metrics), whole.metrics)
