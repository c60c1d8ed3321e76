"""The C++ face of the loss table: every loss, level and option against the specification."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import univg_kernels as uk
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.draws import PAIRS, draws, make_rows
from torch import Tensor
from univg_kernels._rows import PolicyRows, coupling

HEADS = [
    {"temperature": 0.8},
    {"temperature": 0.7, "softcap": 5.0, "logit_scale": 1.5},
    {"vocab_size": 9},
    {"vocab_size": 8, "softcap": 2.0},
]
FIELDS = ("loss", "metrics", "logp")


def policy_outcome(logp: Tensor, entropy: Tensor, backend: str, **arguments: Any) -> list[Tensor]:
    lp, h = logp.clone().requires_grad_(), entropy.clone().requires_grad_()
    out = uk.policy_loss(lp, entropy=h, backend=backend, **arguments)
    grads = torch.autograd.grad(out.loss * 2.0, [lp, h], allow_unused=True)
    return [*out, *(torch.zeros_like(lp) if g is None else g for g in grads)]


def logits_outcome(logits: Tensor, backend: str, inplace: bool = False, **arguments: Any) -> list[Tensor]:
    leaf = logits.clone().requires_grad_()
    out = uk.grpo_loss(leaf * 1.0 if inplace else leaf, inplace=inplace, backend=backend, **arguments)
    return [*out, *torch.autograd.grad(out.loss * 2.0, leaf)]  # a power of two: no second rounding in half precision


def assert_equal(got: list[Tensor], want: list[Tensor], what: object) -> None:
    """To 1e-10, and 1e-6 for the metrics, which are fp32."""
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        tolerance = 1e-6 if i == 1 else 1e-10
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=tolerance, atol=1e-12, msg=lambda m, i=i: f"{what}, result {i}: {m}")


def logits_for(rows: dict[str, Any], logp: Tensor, config: uk.GrpoConfig, vocab: int = 9) -> dict[str, Any]:
    """Arguments of grpo_loss: logits, and the rows moved along to the logits' own log-probabilities."""
    g = torch.Generator().manual_seed(len(logp))
    logits = torch.randn(len(logp), vocab, generator=g, dtype=torch.float64) * 3
    ids = torch.randint(0, config.vocab_size or vocab, (len(logp),), generator=g)
    names = ("temperature", "logit_scale", "softcap", "vocab_size")
    softmax = {name: getattr(config, name) for name in names}
    own, _ = uk.selective_logprob(logits, ids, backend="reference", **softmax)
    moved = {k: rows[k] + own - logp for k in ("old_logp", "ref_logp", "sampling_logp") if k in rows}
    return dict(logits=logits, token_ids=ids, **{**rows, **moved})


@pytest.mark.parametrize(("loss", "level"), PAIRS)
def test_values_and_gradients(loss: str, level: str) -> None:
    couplings = set()
    for seed, (drawn, how) in enumerate(draws(loss, level, 33)):
        config = uk.GrpoConfig(**{**vars(drawn), **HEADS[seed % len(HEADS)]})
        logp, entropy, offsets, rows = make_rows(seed, how)
        shared = dict(rows, config=config, cu_seqlens=torch.tensor(offsets))
        want = policy_outcome(logp, entropy, "reference", **shared)
        assert_equal(policy_outcome(logp, entropy, "cpp", **shared), want, (config, how))
        arguments = logits_for(shared, logp, config)
        want = logits_outcome(backend="reference", **arguments)
        for inplace in (False, True):
            got = logits_outcome(backend="cpp", inplace=inplace, **arguments)
            assert_equal(got, want, (config, how, inplace))
        given = {k: v for k, v in rows.items() if k not in ("denominator",)}
        couplings.add(coupling(PolicyRows(shared["cu_seqlens"], **given), config))
    assert {"response", "batch"} <= couplings
    assert ("row" in couplings) == (level == "token" and loss not in ("gmpo", "vespo"))


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    lengths = draw(st.lists(st.integers(0, 6), max_size=5))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, b = sum(lengths), len(lengths)
    offset_dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    mask = torch.rand(n, generator=g) > draw(st.sampled_from([-1.0, 0.4, 1.0]))
    logp, entropy = -3 * torch.rand(2, n, generator=g, dtype=torch.float64)
    noise = torch.randn(3, n, generator=g, dtype=torch.float64) * draw(st.sampled_from([0.3, 30.0]))
    rows: dict[str, Any] = dict(mask=mask, advantages=torch.randn(b, generator=g, dtype=torch.float64))
    for name, x in zip(("old_logp", "ref_logp", "sampling_logp"), noise, strict=True):
        if draw(st.booleans()):
            rows[name] = torch.where(mask, logp + x, draw(st.sampled_from([torch.nan, torch.inf, 7.0])))
    if "sampling_logp" in rows:
        rows["sampling_logp"][torch.rand(n, generator=g) < 0.2] = torch.nan
    rows["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0).to(offset_dtype)
    rows["config"] = uk.GrpoConfig(
        loss_type=draw(st.sampled_from(["grpo", "cispo", "sapo", "luspo"])),
        importance_sampling_level=draw(st.sampled_from(["token", "sequence", "sequence_token"])),
        importance_sampling_mode=draw(st.sampled_from(["token_truncate", "sequence_mask"])),
        loss_aggregation=draw(st.sampled_from([None, "seq-mean-token-mean"])),
        delta=4.0,
        log_ratio_min=-20.0,
        log_ratio_max=20.0,
        k3_clamp=True,
        vocab_size=draw(st.sampled_from([None, 1, 1025])),
        softcap=draw(st.sampled_from([None, 20.0])),
    )
    return dict(logp=logp, entropy=-entropy, rows=rows)


@settings(deadline=None, max_examples=120)
@given(shapes())
def test_any_shape(p: dict[str, Any]) -> None:
    """Empty and masked responses, no rows at all, log-ratios far out; rows that do not count hold anything."""
    arguments = logits_for(p["rows"], p["logp"], p["rows"]["config"], vocab=1030)
    want = logits_outcome(backend="reference", **arguments)
    mask = p["rows"]["mask"]
    arguments["logits"][~mask] = torch.nan
    for inplace in (False, True):
        got = logits_outcome(backend="cpp", inplace=inplace, **arguments)
        assert_equal(got, want, p["rows"]["config"])
        assert bool((got[-1][~mask] == 0).all())
    want = policy_outcome(p["logp"], p["entropy"], "reference", **p["rows"])
    assert_equal(policy_outcome(p["logp"], p["entropy"], "cpp", **p["rows"]), want, p["rows"]["config"])


OPTIONS: list[dict[str, Any]] = [
    {"beta": 0.1, "delta": 1.5, "softcap": 4.0},
    {"beta": 0.1, "kl_estimator": "k1", "use_bias_correction_kl": True, "entropy_coef": 0.1, "vocab_size": 40},
    {"beta": 0.0, "top_entropy_quantile": 0.5, "entropy_coef": -0.1, "log_ratio_max": 0.2},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("loss", "level"), PAIRS)
def test_low_precision(make_case, assert_no_worse, loss: str, level: str, dtype: torch.dtype) -> None:
    for seed, options in enumerate(OPTIONS):
        config = uk.GrpoConfig(
            loss_type=loss, importance_sampling_level=level, max_completion_length=5, temperature=0.9, **options
        )
        case = make_case(seed=40 + seed, temperature=0.9, given=True).to(dtype)
        rows = dict(
            case.rows, cu_seqlens=case.cu_seqlens, config=config, denominator=3.5, token_ids=case.token_ids % 40
        )
        truth = logits_outcome(case.logits.double(), "reference", **rows)
        eager = logits_outcome(case.logits, "reference", **rows)
        names = (*FIELDS, "d logits")
        for inplace in (False, True):
            got = logits_outcome(case.logits, "cpp", inplace, **rows)
            for name, x, e, t in zip(names, got, eager, truth, strict=True):
                scaled = (x, e, t) if name != "metrics" else (x / 20, e / 20, t / 20)  # counts and sums of 15 rows
                assert_no_worse(f"{name} of {options}", *scaled, dtype)


@pytest.mark.parametrize("loss", ["grpo", "sapo", "gmpo"])
def test_an_infinite_ratio_is_clipped(loss: str) -> None:
    """What a clip holds back has no gradient, not NaN; sapo is flat there."""
    logp = torch.tensor([-1.0, -1.0], requires_grad=True)
    config = uk.GrpoConfig(loss_type=loss, loss_aggregation="token-mean")
    rows = dict(token_advantages=torch.ones(2), old_logp=torch.tensor([-torch.inf, -1.0]))
    out = uk.policy_loss(logp, torch.tensor([0, 1, 2]), config=config, backend="cpp", **rows)
    out.loss.backward()
    assert out.loss.isfinite() and logp.grad is not None
    assert logp.grad[0] == 0 and logp.grad[1] < 0


SMOOTH = [p for p in PAIRS if p[0] not in ("cispo", "vespo") and p[1] != "sequence_token"]  # no stopped gradients


@pytest.mark.parametrize(("loss", "level"), SMOOTH)
def test_gradcheck(loss: str, level: str) -> None:
    g = torch.Generator().manual_seed(3)
    logp, entropy = torch.rand(2, 7, generator=g, dtype=torch.float64).requires_grad_() - 1.5
    old, ref = logp.detach() + 0.4 * torch.rand(2, 7, generator=g, dtype=torch.float64) - 0.2
    config = uk.GrpoConfig(
        loss_type=loss,
        importance_sampling_level=level,
        max_completion_length=5,
        beta=0.3,
        use_bias_correction_kl=True,
        entropy_coef=0.2,
    )

    def value(lp: Tensor, h: Tensor) -> Tensor:
        advantages = torch.tensor([1.5, -0.5, 1.0, -2.0, 0.7, -1.1, 0.4], dtype=torch.float64)
        rows = dict(token_advantages=advantages, old_logp=old, ref_logp=ref, cu_seqlens=torch.tensor([0, 4, 4, 7]))
        return uk.policy_loss(lp, entropy=h, config=config, backend="cpp", **rows).loss

    torch.autograd.gradcheck(value, (logp, entropy))


@pytest.mark.parametrize("cap", [None, 2.0])
def test_gradcheck_of_the_head(cap: float | None) -> None:
    g = torch.Generator().manual_seed(4)
    logits = (torch.randn(3, 11, generator=g, dtype=torch.float64) * 2).requires_grad_()
    softmax = dict(temperature=0.7, logit_scale=1.3, softcap=cap, vocab_size=8, backend="cpp")
    torch.autograd.gradcheck(lambda z: uk.selective_logprob(z, torch.tensor([0, 7, 3]), **softmax), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0, 1000.0])
def test_softcap(assert_no_worse, size: float, dtype: torch.dtype) -> None:
    """Where tanh is a line, where it bends and where it is flat; banned tokens go to -softcap."""
    z = (torch.randn(4, 2500, generator=torch.Generator().manual_seed(5)) * size).to(dtype)
    z[0, 3:9], ids = -torch.inf, torch.tensor([0, 2499, 17, 1024])

    def outcome(x: Tensor, backend: str) -> list[Tensor]:
        x = x.clone().requires_grad_()
        logp, entropy = uk.selective_logprob(x, ids, softcap=10.0, temperature=0.5, backend=backend)
        return [logp.detach(), entropy.detach(), *torch.autograd.grad((logp * 2 + entropy).sum(), x)]

    results = zip(outcome(z, "cpp"), outcome(z, "reference"), outcome(z.double(), "reference"), strict=True)
    for name, (got, eager, true) in zip(("logp", "entropy", "d logits"), results, strict=True):
        assert_no_worse(name, got, eager, true, dtype)


COUPLED = uk.GrpoConfig(importance_sampling_level="sequence", entropy_coef=0.1)


def test_coupled_rows_on_any_number_of_threads(make_case) -> None:
    case = make_case(seed=13, lengths=(9, 30, 0, 12), groups=(4,), vocab=3000).to(torch.float32)
    rows = dict(case.rows, cu_seqlens=case.cu_seqlens, token_ids=case.token_ids, config=COUPLED)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(logits_outcome(case.logits, "cpp", inplace=True, **rows))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("config", [uk.GrpoConfig(), COUPLED], ids=["row", "response"])
def test_overwriting_is_told_to_autograd(make_case, config: uk.GrpoConfig) -> None:
    case = make_case(seed=14)
    rows = dict(case.rows, cu_seqlens=case.cu_seqlens, token_ids=case.token_ids, config=config, backend="cpp")
    logits = case.logits.clone().requires_grad_() * 1.0
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    other = (logits.detach() * factor).sum()  # sends the logits no gradient, but has saved them
    before = logits._version
    loss = uk.grpo_loss(logits, **rows).loss
    assert logits._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        loss.backward()


@pytest.mark.parametrize("config", [uk.GrpoConfig(), COUPLED], ids=["row", "response"])
def test_out_of_place_backward_may_be_repeated(make_case, config: uk.GrpoConfig) -> None:
    (logits,), kwargs = make_case(seed=15).arguments("grpo_loss")
    loss = uk.grpo_loss(logits, backend="cpp", config=config, **kwargs).loss
    one, three = (torch.autograd.grad(loss * scale, logits, retain_graph=True)[0] for scale in (1.0, 3.0))
    torch.testing.assert_close(one * 3, three)
    (gradient,) = torch.autograd.grad(loss.square(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):  # its second derivative is not known
        gradient.sum().backward()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("center", [True, False])
def test_groups_of_one(scale: str, center: bool) -> None:
    config = uk.GrpoConfig(scale_rewards=scale, center_singletons=center)
    rewards = torch.tensor([0.5, 0.7, 0.1, -2.0, 0.3, 0.3], dtype=torch.float64)
    cu = torch.tensor([0, 1, 3, 3, 4, 6])
    got, want = (uk.group_advantage(rewards, cu, config=config, backend=b) for b in ("cpp", "reference"))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
