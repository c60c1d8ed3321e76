"""Random shapes, masks and settings of the whole table: faces agree, heads agree, and what must not matter does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import univg_kernels as uk
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.draws import PAIRS
from torch import Tensor
from univg_kernels import _linear_head
from univg_kernels.config import CHOICES

HEADS = {"grpo_loss": ["logits"], "linear_grpo_loss": ["hidden", "weight", "bias"], "policy_loss": ["logp", "entropy"]}
AGGREGATIONS = (None, *CHOICES["loss_aggregation"])


@st.composite
def configs(draw: st.DrawFn) -> uk.GrpoConfig:
    loss, level = draw(st.sampled_from(PAIRS))
    difficulty = draw(st.sampled_from(CHOICES["difficulty"]))

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    return uk.GrpoConfig(
        loss_type=loss,
        importance_sampling_level=level,
        loss_aggregation=one(*AGGREGATIONS),
        count_empty_responses=one(True, False),
        max_completion_length=9,
        epsilon_low=one(0.0, 0.2),
        epsilon_high=one(0.0, 0.3, 2.0),
        delta=one(None, 1.1, 4.0),
        log_ratio_max=one(float("inf"), 0.4),
        cispo_two_sided=one(True, False),
        beta=one(0.0, 0.04),
        kl_estimator=one(*CHOICES["kl_estimator"]),
        k3_clamp=one(True, False),
        use_bias_correction_kl=one(True, False),
        entropy_coef=one(0.0, 0.1, -0.1),
        entropy_aggregation=one("token-mean", "loss"),
        top_entropy_quantile=one(1.0, 1.0, 0.4),
        importance_sampling_mode=one(*CHOICES["importance_sampling_mode"]),
        importance_sampling_aggregation=one("sum", "mean"),
        importance_sampling_clip_min=one(0.0, 0.7),
        importance_sampling_clip_max=one(1.4, 3.0),
        importance_sampling_on_kl=one(True, False),
        off_policy_mask_threshold=one(None, None, 0.1),
        temperature=one(0.6, 1.0),
        logit_scale=one(1.0, 0.4),
        softcap=one(None, 3.0),
        difficulty=difficulty,
        normalize_difficulty=difficulty != "log" and one(True, False),
        scale_rewards=one("group", "batch", "none"),
        center_singletons=one(True, False),
    )


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """hidden, weight, bias, token_ids, config, and rows: the keyword arguments that the three losses share."""
    config = draw(configs())
    groups = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    b = sum(groups)
    lengths = draw(st.lists(st.integers(0, 5), min_size=b, max_size=b))
    n, vocab = sum(lengths), draw(st.sampled_from([1, 2, 17, 1025]))
    if draw(st.booleans()):
        config = replace(config, vocab_size=max(1, vocab - 3))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    index = draw(st.sampled_from([torch.int32, torch.int64]))

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    def offsets(sizes: Sequence[int]) -> Tensor:
        return torch.tensor([0, *sizes]).cumsum(0).to(index)

    p = dict(hidden=rand(n, 4) * 8 - 4, weight=rand(vocab, 4) * 2 - 1, bias=rand(vocab), config=config)
    p["token_ids"] = torch.randint(0, config.vocab_size or vocab, (n,), generator=g).to(index)
    logp, _ = logprobs(p)
    rows: dict[str, Any] = {"cu_seqlens": offsets(lengths)}
    kind = draw(st.sampled_from(["rewards", "advantages", "token_advantages"]))
    if kind == "rewards":
        rewards = torch.full((b,), 0.1, dtype=torch.float64) if draw(st.booleans()) else rand(b)
        rows |= {"rewards": rewards, "accuracy": rand(b), "cu_groups": offsets(groups)}
    else:
        rows |= {kind: rand(b if kind == "advantages" else n) * 4 - 2, "phi": rand(b) * 4 - 2}
    for name in ("old_logp", "ref_logp"):
        if draw(st.booleans()):
            rows[name] = logp + rand(n) - 0.5
    ratio = draw(st.sampled_from(["sampling_logp", "importance_ratio", "token_importance_ratio", None]))
    if ratio == "sampling_logp":
        rows[ratio] = torch.where(rand(n) < 0.2, torch.nan, logp + rand(n) - 0.5)
    elif ratio is not None:
        rows[ratio] = rand(b if ratio == "importance_ratio" else n) * (0.5 + rand(1))
    if draw(st.booleans()):
        rows["mask"] = rand(n) > draw(st.sampled_from([0.0, 0.5, 1.0]))
    if draw(st.booleans()):
        rows["denominator"] = draw(st.sampled_from([7, 0.5, torch.tensor(3.0)]))
    return p | dict(rows=rows)


def logprobs(p: dict[str, Any]) -> tuple[Tensor, Tensor]:
    c = p["config"]
    return uk.linear_logprob(
        p["hidden"], p["weight"], p["token_ids"], bias=p["bias"], temperature=c.temperature, softcap=c.softcap,
        logit_scale=c.logit_scale, vocab_size=c.vocab_size, backend="reference",
    )  # fmt: skip


def outcome(p: dict[str, Any], op: str, backend: str, **changed: Any) -> list[Tensor]:
    """[loss, metrics, logp, gradients by hidden, weight and bias] of one head."""
    rows = p["rows"] | dict(config=p["config"], backend=backend) | changed
    leaves = {k: p[k].clone().requires_grad_() for k in ("hidden", "weight", "bias")}
    if op == "policy_loss":
        logp, entropy = logprobs(p | leaves)
        out = uk.policy_loss(logp, entropy=entropy, **rows)
    elif op == "grpo_loss":
        logits = torch.nn.functional.linear(*leaves.values())
        out = uk.grpo_loss(logits, token_ids=p["token_ids"], **rows)
    else:
        out = uk.linear_grpo_loss(**leaves, token_ids=p["token_ids"], **rows)
    total = out.loss * 2.0 + sum(0.0 * x.sum() for x in leaves.values())
    return [*out, *torch.autograd.grad(total, list(leaves.values()))]


def size_of(p: dict[str, Any]) -> float:
    """Of the largest factor before a row's gradient, 1 or more: what cancels in exact numbers leaves rounding of it."""
    rows = p["rows"]
    factors = [torch.ones(1), rows.get("advantages", torch.ones(1)), rows.get("token_advantages", torch.ones(1))]
    if "rewards" in rows:  # a group of almost equal ones has advantages in thousands
        stats = uk.group_advantage(rows["rewards"], rows["cu_groups"], accuracy=rows["accuracy"], config=p["config"])
        factors.append(stats.advantages * stats.phi)
    return max(float(factor.abs().max()) for factor in factors if factor.numel())


def assert_same(got: list[Tensor], want: list[Tensor], what: str, p: dict[str, Any]) -> None:
    names = ("loss", "metrics", "logp", "d hidden", "d weight", "d bias")
    for name, x, y in zip(names, got, want, strict=True):
        tolerance = 1e-6 if name == "metrics" else 1e-10  # metrics are fp32
        absolute = tolerance / 100 * (1 if name in ("metrics", "logp") else size_of(p))
        torch.testing.assert_close(x, y, rtol=tolerance, atol=absolute, msg=lambda m, n=name: f"{n}, {what}: {m}")


@settings(deadline=None, max_examples=150)
@given(problems())
def test_faces_and_heads_agree(p: dict[str, Any]) -> None:
    """Three heads, two faces: one loss, one gradient."""
    want = outcome(p, "policy_loss", "reference")
    for op in HEADS:
        with patch.object(_linear_head, "default_chunk_rows", lambda num_rows, vocab: 3):
            assert_same(outcome(p, op, "cpp"), want, f"{op} in C++", p)
    assert_same(outcome(p, "linear_grpo_loss", "reference"), want, "reference of linear_grpo_loss", p)


@settings(deadline=None, max_examples=60)
@given(problems(), st.sampled_from(["reference", "cpp"]))
def test_what_must_not_matter(p: dict[str, Any], backend: str) -> None:
    """Values in rows that do not count; how advantages are given; how a ratio of 1 is; the order of the responses."""
    rows, config = p["rows"], p["config"]
    want = outcome(p, "policy_loss", backend)
    seq = torch.repeat_interleave(torch.arange(len(rows["cu_seqlens"]) - 1), rows["cu_seqlens"].diff())
    if "mask" in rows:
        off = ~rows["mask"]
        noise = {k: torch.where(off, torch.nan, v) for k, v in rows.items() if k.endswith("_logp")}
        assert_same(outcome(p, "policy_loss", backend, **noise), want, "NaN in rows that do not count", p)
    if "advantages" in rows:
        spread = dict(advantages=None, token_advantages=rows["advantages"][seq])
        assert_same(outcome(p, "policy_loss", backend, **spread), want, "one advantage per token", p)
    if "importance_ratio" in rows and config.loss_type not in ("vespo", "gmpo"):
        spread = dict(importance_ratio=None, token_importance_ratio=rows["importance_ratio"][seq])
        assert_same(outcome(p, "policy_loss", backend, **spread), want, "one importance ratio per token", p)
    if "sampling_logp" not in rows and not any("ratio" in k for k in rows):
        ones = torch.ones(len(seq), dtype=torch.float64)
        assert_same(outcome(p, "policy_loss", backend, token_importance_ratio=ones), want, "ratios of 1", p)
    if "rewards" not in rows:
        assert_same(backwards(p, backend), want, "responses in another order", p)


def backwards(p: dict[str, Any], backend: str) -> list[Tensor]:
    """The outcome of the responses in reversed order, its rows put back."""
    rows, cu = p["rows"], p["rows"]["cu_seqlens"]
    order = torch.cat(
        [torch.arange(int(a), int(b)) for a, b in zip(cu[:-1], cu[1:], strict=True)][::-1] + [cu[:0].long()]
    )
    turned = {k: v.flip(0) for k, v in rows.items() if k in ("advantages", "phi", "importance_ratio")}
    for name in ("token_advantages", "old_logp", "ref_logp", "sampling_logp", "token_importance_ratio", "mask"):
        if name in rows:
            turned[name] = rows[name][order]
    turned["cu_seqlens"] = torch.cat([cu[:1], cu.diff().flip(0).cumsum(0).to(cu.dtype)])
    moved = p | dict(hidden=p["hidden"][order], token_ids=p["token_ids"][order], rows=rows | turned)
    loss, metrics, logp, d_hidden, *others = outcome(moved, "policy_loss", backend)
    back = order.argsort()
    return [loss, metrics, logp[back], d_hidden[back], *others]


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(0, 2**31))
def test_micro_batches_add_up(p: dict[str, Any], seed: int) -> None:
    """With the denominator of the whole, any split into responses gives loss, gradients and metrics of the whole."""
    rows, cu = p["rows"], p["rows"]["cu_seqlens"].long()
    b = len(cu) - 1
    if "rewards" in rows:  # advantages belong to whole groups: make them first, as a trainer does
        stats = uk.group_advantage(rows["rewards"], rows["cu_groups"], accuracy=rows["accuracy"], config=p["config"])
        rows = {k: v for k, v in rows.items() if k not in ("rewards", "accuracy", "cu_groups")}
        rows |= {"advantages": stats.advantages, "phi": stats.phi}
    # What belongs to the whole batch is made of it and given: the threshold; a bonus like the loss.
    config = replace(p["config"], top_entropy_quantile=1.0, entropy_aggregation="loss")
    rows["entropy_threshold"] = 0.5
    rows["denominator"] = max(b, 1)
    cut = int(torch.randint(0, b + 1, (), generator=torch.Generator().manual_seed(seed)))

    def part(first: int, last: int) -> list[Tensor]:
        t = slice(int(cu[first]), int(cu[last]))
        mine = dict(rows, cu_seqlens=cu[first : last + 1] - cu[first])
        for name in ("token_advantages", "old_logp", "ref_logp", "sampling_logp", "token_importance_ratio", "mask"):
            if name in rows:
                mine[name] = rows[name][t]
        mine |= {k: rows[k][first:last] for k in ("advantages", "phi", "importance_ratio") if k in rows}
        some = p | dict(hidden=p["hidden"][t], token_ids=p["token_ids"][t], rows=mine, config=config)
        return outcome(some, "grpo_loss", "cpp")

    whole, one, two = part(0, b), part(0, cut), part(cut, b)
    both = [one[0] + two[0], uk.combine_metrics(one[1], two[1]), torch.cat([one[2], two[2]])]
    both += [torch.cat([one[3], two[3]]), one[4] + two[4], one[5] + two[5]]
    assert_same(both, whole, "two halves", p)
