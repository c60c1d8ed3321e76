"""The linear heads: every path to the gradients against the reference, and what each of them multiplies.

Their Triton faces: triton_suite_linear.py.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
import univg_kernels as uk
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from univg_kernels import _linear_head
from univg_kernels._linear_sweeps import Kept, Skipping, order_on_device, skipping_on_host

CHUNK = 16
SEVERAL = dict(lengths=(7, 0, 9, 3, 12, 5, 0, 2, 10, 4), groups=(4, 6))  # 52 rows: 4 chunks, none of them even


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear_head, "default_chunk_rows", lambda num_rows, vocab: CHUNK)


def move_by_copy(z: Tensor, kept: Kept) -> None:
    count = int(kept.number)
    z[:count] = z[kept.rows[:count]]


SKIPPING = {
    "on the host": skipping_on_host,
    # The way of the Triton face, with the C++ kernels and torch's grouped products on the CPU.
    "on the device": lambda: Skipping(order_on_device, move_by_copy),
    "nothing": lambda: None,
}


@pytest.fixture(params=["on the host"])
def skipping(request, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who counts the rows without a gradient."""
    for op in ("linear_grpo_loss", "linear_ce", "linear_logprob"):
        monkeypatch.setattr(import_module(f"univg_kernels.{op}.cpp_impl"), "skipping_on_host", SKIPPING[request.param])
    return request.param


ROW = uk.GrpoConfig(temperature=0.9)
RESPONSE = uk.GrpoConfig(importance_sampling_level="sequence", temperature=0.9)
BATCH = uk.GrpoConfig(top_entropy_quantile=0.6, entropy_coef=0.02)
CONFIGS = {
    "rows": ROW,
    "rows with an entropy bonus": uk.GrpoConfig(entropy_coef=0.05),
    "rows without a KL term": uk.GrpoConfig(beta=0.0),
    "responses": RESPONSE,
    "responses, gmpo": uk.GrpoConfig(loss_type="gmpo"),
    "responses with an entropy bonus": uk.GrpoConfig(loss_type="vespo", entropy_coef=0.05),
    "batch": BATCH,
    "padding, soft cap, scale": uk.GrpoConfig(vocab_size=37, softcap=1.5, logit_scale=0.7, temperature=1.2),
    "padding, responses": uk.GrpoConfig(vocab_size=37, importance_sampling_level="sequence_token"),
    "padding, batch": uk.GrpoConfig(vocab_size=37, top_entropy_quantile=0.5),
}
SHAPES = {
    "one chunk": dict(lengths=(3, 0, 5, 1, 4, 2), groups=(3, 1, 2)),
    "several chunks": SEVERAL,
    "a response longer than a chunk": dict(lengths=(5, 30, 2, 0, 18), groups=(2, 3)),
}


WEIGHT = 4  # its gradient's place in `outcome`


def make(make_case, seed: int, **options: Any):
    """A case whose tokens are all below 37."""
    case = make_case(seed, **options)
    case.token_ids.remainder_(37)
    return case


def references(case, kind: str) -> dict[str, Any]:
    """Arguments of a reference policy in the same pass. Its hidden states are neither this policy's nor as wide."""
    if kind == "none":
        return {}
    g = torch.Generator().manual_seed(99)

    def rand(*shape: int) -> Tensor:
        return torch.round(torch.randn(*shape, generator=g, dtype=torch.float64) * 16).div(32).to(case.hidden.dtype)

    if kind == "tied weight":
        return {"ref_hidden": rand(*case.hidden.shape)}
    weight = rand(case.weight.shape[0], 4)
    return {"ref_hidden": rand(len(case.hidden), 4), "ref_weight": weight, "ref_bias": rand(len(weight))}


def outcome(case, config: uk.GrpoConfig, backend: str, reference: str = "none", bias: bool = True) -> list[Tensor]:
    inputs, kwargs = case.arguments("linear_grpo_loss")
    kwargs |= references(case, reference)
    if reference != "none":
        kwargs["ref_logp"] = None
    names = ["hidden", "weight", "bias"][: 3 if bias else 2]
    named = dict(zip(names, inputs[: len(names)], strict=True))
    out = uk.linear_grpo_loss(**named, config=config, backend=backend, **kwargs)
    return [*out, *torch.autograd.grad(out.loss * 2.0, tuple(named.values()))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("skipping", ["on the host", "nothing"], indirect=True)
def test_every_path_is_the_reference(make_case, skipping: str, name: str, shape: str) -> None:
    case = make(make_case, 1, **SHAPES[shape])
    results = (outcome(case, CONFIGS[name], backend) for backend in ("cpp", "reference"))
    for got, want in zip(*results, strict=True):
        precise = got.dtype == torch.float64
        torch.testing.assert_close(got, want, rtol=1e-10 if precise else 1e-6, atol=1e-10 if precise else 1e-6)


@pytest.mark.parametrize("reference", ["tied weight", "its own width, weight and bias"])
@pytest.mark.parametrize("name", ["rows", "responses", "batch", "padding, soft cap, scale"])
def test_reference_policy_in_the_same_pass(make_case, name: str, reference: str) -> None:
    case = make(make_case, 2, **SEVERAL)
    results = (outcome(case, CONFIGS[name], backend, reference, bias=False) for backend in ("cpp", "reference"))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6 if got.dtype == torch.float32 else 1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["rows", "responses", "batch", "padding, soft cap, scale"])
def test_precision(make_case, assert_no_worse, name: str, dtype: torch.dtype) -> None:
    case, config = make(make_case, 3, **SEVERAL).to(dtype), CONFIGS[name]
    if name == "batch":  # given, so that rounding moves no row across it
        config = uk.GrpoConfig(top_entropy_quantile=0.6, entropy_coef=0.02)
        case.rows["entropy_threshold"] = 3.0
    truth = outcome(case.to(torch.float64), config, "reference")
    results = zip(outcome(case, config, "cpp"), outcome(case, config, "reference"), truth, strict=True)
    for i, (got, eager, true) in enumerate(results):
        assert got.dtype == eager.dtype
        if i == WEIGHT and dtype == torch.bfloat16:  # every chunk's product is rounded, of which there are four
            eager = true + (eager - true) * 2
        assert_no_worse(f"{name} result {i}", got, eager, true, dtype)


class Products(TorchDispatchMode):
    """Rows of logits in the products, one for each product that they are in; and the largest new tensor."""

    def __init__(self, width: int, vocab: int):
        super().__init__()
        self.unit, self.rows, self.largest = width * vocab, 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket
        if name in (torch.ops.aten.mm, torch.ops.aten.addmm):
            a, b = args[-2:]
            self.rows += a.shape[0] * a.shape[1] * b.shape[1] / self.unit
        if name == torch.ops.aten._grouped_mm:
            (a, b), count = args[:2], int((kwargs or {}).get("offs", args[2] if len(args) > 2 else None))
            over_rows = b.dim() == 2  # z.T @ hidden: contracted over rows
            size = a.shape[0] * b.shape[1] if over_rows else a.shape[1] * b.shape[2]
            self.rows += count * size / self.unit
        made = result if isinstance(result, Tensor) else None
        if made is not None and not made._is_view() and "out" not in (kwargs or {}) and not func._schema.is_mutable:
            self.largest = max(self.largest, made.numel())
        return result


N, V, H = 80, 30, 8
EVEN = dict(lengths=(8,) * 10, groups=(10,), vocab=V, masked=False, old=False, ref=False)


def count_products(make_case, config: uk.GrpoConfig, given: dict[str, Any], *, frozen: bool = False, **options: Any):
    case = make_case(seed=4, **EVEN)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_(not frozen)
    with Products(H, V) as counter:
        out = uk.linear_grpo_loss(
            hidden, weight, case.token_ids, case.cu_seqlens, config=config, backend="cpp", **given, **options
        )
        out.loss.backward()
    assert (weight.grad is None) == frozen
    return counter.rows


HALF = torch.tensor([1.0, 0.0] * 5)
ONES = torch.ones(10)


@pytest.mark.parametrize(
    ("what", "config", "advantages", "rows"),
    [
        ("all active", ROW, ONES, 3 * N),
        ("half active", ROW, HALF, N + 2 * N / 2),
        ("none active", ROW, ONES * 0, N),
        ("whole responses in a chunk", RESPONSE, ONES, 3 * N),
        ("half of the responses active", RESPONSE, HALF, N + 2 * N / 2),
        ("batch", uk.GrpoConfig(top_entropy_quantile=0.5), ONES, None),
    ],
)
def test_rows_multiplied(make_case, what: str, config: uk.GrpoConfig, advantages: Tensor, rows: float | None) -> None:
    counted = count_products(make_case, config, {"advantages": advantages})
    if rows is None:  # two passes; the second one is of the rows of high entropy only
        rows = N + 3 * N / 2
    assert counted == pytest.approx(rows), what


def test_rows_multiplied_for_a_frozen_head(make_case) -> None:
    given = {"advantages": ONES}
    assert count_products(make_case, ROW, given, frozen=True) == pytest.approx(2 * N)


def test_rows_multiplied_without_lengths_on_the_host(make_case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then rows that depend on their response cost a fourth product, but not where one chunk holds them all."""
    door = import_module("univg_kernels.linear_grpo_loss")
    check_rows = door.check_rows
    monkeypatch.setattr(door, "check_rows", lambda *args: check_rows(*args)._replace(host_seqlens=None))
    assert count_products(make_case, RESPONSE, {"advantages": ONES}) == pytest.approx(4 * N)
    monkeypatch.setattr(_linear_head, "default_chunk_rows", lambda num_rows, vocab: N)
    assert count_products(make_case, RESPONSE, {"advantages": ONES}) == pytest.approx(3 * N)
    assert count_products(make_case, BATCH, {"advantages": ONES}) <= 3 * N


def test_rows_multiplied_with_a_reference(make_case) -> None:
    reference = {"ref_hidden": torch.randn(N, H, dtype=torch.float64)}
    assert count_products(make_case, ROW, {"advantages": ONES}, **reference) == pytest.approx(4 * N)
    no_kl = uk.GrpoConfig(beta=0.0)
    assert count_products(make_case, no_kl, {"advantages": ONES}, **reference) == pytest.approx(3 * N)


def test_never_the_logits(make_case) -> None:
    """Nothing is allocated that is larger than a chunk of logits or one of the gradients; with weight_grad, no other
    buffer of the weight's size."""
    case = make_case(seed=5, **{**EVEN, "vocab": 20000})
    for config in (ROW, RESPONSE, BATCH):
        hidden = case.hidden.bfloat16().requires_grad_()
        weight, buffer = case.weight.bfloat16().requires_grad_(), torch.zeros(20000, H)
        with Products(H, 20000) as counter:
            out = uk.linear_grpo_loss(
                hidden, weight, case.token_ids, case.cu_seqlens, config=config, advantages=ONES, backend="cpp",
                weight_grad=buffer,
            )  # fmt: skip
            out.loss.backward()
        assert counter.largest <= CHUNK * 20000
        assert counter.largest < N * 20000 / 4 and bool(buffer.any())


# --- weight_grad ---


def add_into(
    case, buffer: Tensor | None, backend: str, *, config: uk.GrpoConfig = ROW, frozen: bool = False, op="policy"
):
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_(not frozen)
    if op == "policy":
        kwargs = case.arguments("linear_grpo_loss")[1]
        loss = uk.linear_grpo_loss(hidden, weight, config=config, weight_grad=buffer, backend=backend, **kwargs).loss
    else:
        row_weight = torch.linspace(0, 1, len(hidden))
        loss, _ = uk.linear_ce(
            hidden, weight, case.token_ids, row_weight=row_weight, weight_grad=buffer, backend=backend
        )  # fmt: skip
    return loss, hidden, weight


@pytest.mark.parametrize("op", ["policy", "ce"])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_weight_grad_adds_up(make_case, backend: str, op: str) -> None:
    """Two calls into one buffer are the sum of their gradients, besides what was there; weight itself gets none."""
    cases = [make(make_case, seed, **SEVERAL) for seed in (6, 7)]
    want, buffer = torch.full_like(cases[0].weight, 0.25), torch.full_like(cases[0].weight, 0.25)
    for case in cases:
        loss, hidden, weight = add_into(case, None, "reference", op=op)
        loss.backward()
        got_loss, got_hidden, got_weight = add_into(case, buffer, backend, op=op)
        got_loss.backward()
        want += weight.grad
        assert got_weight.grad is None
        torch.testing.assert_close(got_hidden.grad, hidden.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(buffer, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["rows", "batch"])
def test_weight_grad_in_fp32_keeps_what_half_precision_loses(make_case, assert_no_worse, name: str) -> None:
    """Small gradients on top of a large one: a buffer in fp32 takes them in."""
    case = make(make_case, 8, **SEVERAL).to(torch.bfloat16)
    start = 64.0  # the gradients lie below half a unit in the last place of it in bf16
    buffer = torch.full(case.weight.shape, start)
    truth = torch.zeros(case.weight.shape, dtype=torch.float64)
    add_into(case.to(torch.float64), truth, "reference", config=CONFIGS[name])[0].backward()
    add_into(case, buffer, "cpp", config=CONFIGS[name])[0].backward()
    loss, _, weight = add_into(case, None, "reference", config=CONFIGS[name])
    loss.backward()
    assert_no_worse("weight_grad", buffer - start, weight.grad, truth, torch.bfloat16)


def test_weight_grad_of_the_columns_that_exist(make_case) -> None:
    case, buffer = make(make_case, 9, **SEVERAL), torch.full((50, 8), 3.0, dtype=torch.float64)
    add_into(case, buffer, "cpp", config=CONFIGS["padding, soft cap, scale"])[0].backward()
    assert bool((buffer[37:] == 3.0).all()) and bool((buffer[:37] != 3.0).any())


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_weight_grad_of_a_frozen_weight(make_case, backend: str) -> None:
    """Asked for, it is made."""
    case = make(make_case, 10)
    want, got = torch.zeros_like(case.weight), torch.zeros_like(case.weight)
    add_into(case, want, "reference")[0].backward()
    add_into(case, got, backend, frozen=True)[0].backward()
    assert bool(want.any())
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("op", ["policy", "ce"])
def test_weight_grad_takes_an_upstream_gradient_of_one(make_case, op: str) -> None:
    case = make(make_case, 11)
    loss, *_ = add_into(case, torch.zeros_like(case.weight), "cpp", op=op)
    with pytest.raises(
        RuntimeError, match=r"with weight_grad .* upstream gradient of 1.*scale the loss by denominator"
    ):
        (loss / 2).backward()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_weight_grad_is_left_alone_without_gradients(make_case, backend: str) -> None:
    case = make(make_case, 12)
    buffer = torch.zeros_like(case.weight)
    with torch.no_grad():
        loss, *_ = add_into(case, buffer, backend)
    assert not loss.requires_grad and not bool(buffer.any())


@pytest.mark.parametrize("given", ["weight_grad", "reference"])
@pytest.mark.parametrize("name", ["rows", "responses", "batch"])
def test_compiled_equals_eager(make_case, name: str, given: str) -> None:
    """Without a graph break, although nothing is skipped there."""
    torch.compiler.reset()
    case = make(make_case, 21, lengths=(7, 0, 9, 3), groups=(4,)).to(torch.float32)
    _, kwargs = case.arguments("linear_grpo_loss")
    if given == "reference":
        kwargs |= references(case, "its own width, weight and bias") | {"ref_logp": None}

    def step(compiled: bool) -> tuple[Tensor, list[Tensor]]:
        hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
        buffer = torch.zeros_like(weight)

        def loss(h: Tensor, w: Tensor) -> Tensor:
            into = {"weight_grad": buffer} if given == "weight_grad" else {}
            return uk.linear_grpo_loss(h, w, config=CONFIGS[name], **into, **kwargs).loss

        call = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
        value = call(hidden, weight)
        value.backward(retain_graph=True)
        grads = [hidden.grad, buffer if given == "weight_grad" else weight.grad]
        if given == "weight_grad" and compiled:
            with pytest.raises(RuntimeError, match="upstream gradient of 1"):
                (value * 2).backward()
        return value.detach(), [g.clone() for g in grads]

    eager = step(False)  # first: the face is imported outside of the trace
    torch.testing.assert_close(step(True), eager)


# --- nothing to do ---


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", ["rows", "responses", "batch"])
def test_no_rows(make_case, name: str, backend: str) -> None:
    case = make_case(seed=13, lengths=(0, 0), groups=(2,))
    loss, metrics, logp, *grads = outcome(case, CONFIGS[name], backend)
    assert float(loss.detach()) == 0.0 and logp.numel() == 0 and not bool(metrics.any())
    assert [g.shape for g in grads] == [(0, 8), (50, 8), (50,)] and not any(bool(g.any()) for g in grads)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_no_rows_for_the_other_heads(backend: str) -> None:
    hidden, weight = torch.zeros(0, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    ids, none = torch.zeros(0, dtype=torch.long), torch.zeros(0)
    loss, logp = uk.linear_ce(hidden, weight, ids, row_weight=none, backend=backend)
    lp, entropy = uk.linear_logprob(hidden, weight, ids, backend=backend)
    (loss + lp.sum() + entropy.sum()).backward()
    assert float(loss.detach()) == 0.0 and logp.shape == lp.shape == (0,)
    assert weight.grad is not None and not bool(weight.grad.any())


@pytest.mark.parametrize("name", ["rows", "responses", "batch"])
def test_all_rows_inactive(make_case, name: str) -> None:
    case = make_case(seed=14, **SEVERAL, ref=False)
    for off in ({"mask": torch.zeros(52, dtype=torch.bool)}, {"rewards": torch.ones(10, dtype=torch.float64)}):
        given = {**case.rows, **off}
        config = uk.GrpoConfig(**{**vars(CONFIGS[name]), "entropy_coef": 0.0})
        inputs = [t.clone().requires_grad_() for t in (case.hidden, case.weight, case.bias)]
        named = dict(zip(("hidden", "weight", "bias"), inputs, strict=True))
        out = uk.linear_grpo_loss(
            **named, token_ids=case.token_ids, cu_seqlens=case.cu_seqlens, config=config, backend="cpp", **given
        )
        for g in torch.autograd.grad(out.loss, inputs):
            assert not bool(g.any())


@pytest.mark.parametrize("skipping", SKIPPING, indirect=True)
def test_rows_that_do_not_count_may_hold_anything(make_case, skipping: str) -> None:
    """Their hidden states touch no other row, and not the weight's gradient."""
    case = make(make_case, 15, **SEVERAL).to(torch.float32)
    case.rows["mask"][:20] = False  # no row of the first chunk
    case.hidden[~case.rows["mask"]] = torch.nan
    kept = case.rows["mask"]
    for name in ("rows", "responses", "batch"):
        loss, metrics, logp, hidden, weight, _ = outcome(case, CONFIGS[name], "cpp", bias=True)
        for x in (loss, metrics, logp, hidden[kept], weight):
            assert bool(x.isfinite().all()), name


# --- the number of active rows known to the device only ---


@pytest.mark.parametrize("skipping", ["on the device"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_counted_on_the_device(make_case, assert_no_worse, skipping: str, name: str, dtype: torch.dtype) -> None:
    case, config = make(make_case, 16, **SEVERAL, ref=name != "rows without a KL term").to(dtype), CONFIGS[name]
    if "batch" in name:
        case.rows["entropy_threshold"] = 3.0
    bias = "batch" not in name  # without one, the second product is of as many rows, too
    truth = outcome(case.to(torch.float64), config, "reference", bias=bias)
    faces = (outcome(case, config, backend, bias=bias) for backend in ("cpp", "reference"))
    for i, (got, eager, true) in enumerate(zip(*faces, truth, strict=True)):
        if i == WEIGHT and dtype == torch.bfloat16:  # as above
            eager = true + (eager - true) * 2
        assert_no_worse(f"{name} result {i}", got, eager, true, dtype)


@pytest.mark.parametrize(
    ("config", "advantages", "rows"),
    # The chunks hold 16 rows each, whole responses; of a chunk without active rows one row of zeros is multiplied.
    [
        (ROW, HALF, N + N),
        (ROW, ONES * 0, N + 2 * 5),
        (RESPONSE, HALF, N + N),
        (uk.GrpoConfig(top_entropy_quantile=0.5), ONES, N + 3 * N / 2 + 3 * 2),  # the last two of 5 chunks have none
    ],
)
@pytest.mark.parametrize("skipping", ["on the device"], indirect=True)
def test_rows_multiplied_as_counted_on_the_device(make_case, skipping, config, advantages, rows) -> None:
    case = make_case(seed=4, **EVEN).to(torch.float32)
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    with Products(H, V) as counter:
        out = uk.linear_grpo_loss(
            hidden, weight, case.token_ids, case.cu_seqlens, config=config, advantages=advantages, backend="cpp"
        )
        out.loss.backward()
    assert counter.rows == pytest.approx(rows)


@pytest.mark.parametrize("chunk", [CHUNK, 64])  # of 64 rows torch's bf16 product on the CPU reads what lies between
@pytest.mark.parametrize("skipping", SKIPPING, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_read_before_it_is_written(
    make_case, monkeypatch, name: str, dtype: torch.dtype, skipping: str, chunk: int
) -> None:
    """torch can fill what it allocates with NaN."""
    monkeypatch.setattr(_linear_head, "default_chunk_rows", lambda num_rows, vocab: chunk)
    case = make(make_case, 20, **SEVERAL, ref=name != "rows without a KL term").to(dtype)
    plain = outcome(case, CONFIGS[name], "cpp", bias="batch" not in name)
    torch.use_deterministic_algorithms(True)
    try:
        filled = outcome(case, CONFIGS[name], "cpp", bias="batch" not in name)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(plain, filled, strict=True):
        assert torch.equal(a, b)


# --- linear_logprob ---


def logprob_call(case, backend: str, **options: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    inputs = tuple(t.clone().requires_grad_() for t in (case.hidden, case.weight, case.bias))
    named = dict(zip(("hidden", "weight", "bias"), inputs, strict=True))
    return inputs, uk.linear_logprob(**named, token_ids=case.token_ids, backend=backend, **options)


@pytest.mark.parametrize("options", [{}, dict(temperature=0.7, softcap=1.5, logit_scale=0.8, vocab_size=37)], ids=str)
def test_logprob_per_row_upstream_gradients(make_case, options: dict[str, Any]) -> None:
    case = make(make_case, 17, **SEVERAL)
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(52, generator=g, dtype=torch.float64) for _ in range(2))
    a[::3], b[::3], b[1::3] = 0.0, 0.0, 0.0  # inactive, both, the first only
    results = []
    for backend in ("cpp", "reference"):
        inputs, (logp, entropy) = logprob_call(case, backend, **options)
        grads = torch.autograd.grad((a * logp + b * entropy).sum(), inputs)
        results.append([logp.detach(), entropy.detach(), *grads])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_logprob_backward_may_be_repeated_but_not_differentiated(make_case) -> None:
    inputs, (logp, entropy) = logprob_call(make(make_case, 18, **SEVERAL), "cpp")
    loss = logp.sum() - 0.5 * entropy.sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss * 3.0, inputs, retain_graph=True)
    torch.testing.assert_close([g * 3 for g in first], list(second))
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    (once,) = torch.autograd.grad(loss * factor, inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


@pytest.mark.parametrize(("skipping", "rows"), [("on the host", 30), ("on the device", 33)], indirect=["skipping"])
@pytest.mark.parametrize(("frozen", "products"), [("none", 3), ("weight", 2), ("hidden", 2)])
def test_logprob_makes_the_active_rows_once_more(make_case, skipping, rows: int, frozen: str, products: int) -> None:
    """Counted on the device they lie in the first two of 5 chunks; of each other one row of zeros is multiplied."""
    case = make_case(seed=4, **EVEN).to(torch.float32)
    hidden, weight = (case.hidden.requires_grad_(frozen != "hidden"), case.weight.requires_grad_(frozen != "weight"))
    logp, entropy = uk.linear_logprob(hidden, weight, case.token_ids, backend="cpp")
    upstream = torch.zeros(N)
    upstream[5:25] = 1.0
    with Products(H, V) as counter:
        torch.autograd.backward([logp, entropy], [upstream, upstream.roll(10)])
    assert counter.rows == pytest.approx(products * rows)
    assert (weight.grad is None) == (frozen == "weight") and (hidden.grad is None) == (frozen == "hidden")
