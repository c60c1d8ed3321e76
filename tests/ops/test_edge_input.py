"""Input at the edge of sense: what the docstrings say works does, and nothing crashes or answers in silence."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops.faults import LOSSES, B, H, N, V, good
from torch import Tensor
from univg_kernels import _checks, _row_checks

door_of_groups = sys.modules["univg_kernels.group_advantage"]

DOORS = (*LOSSES, "selective_logprob", "linear_logprob", "linear_ce", "group_advantage", "difficulty_weight", "box_iou")
DOORS += ("matched_iou",)
ROWS: dict[str, Any] = dict(
    phi=torch.ones(B),
    old_logp=-torch.ones(N),
    ref_logp=-torch.ones(N),
    sampling_logp=-torch.ones(N),
    mask=torch.tensor([True, True, True, False, True, True]),
    denominator=3.0,
    entropy_threshold=0.1,
)
HEAD: dict[str, Any] = dict(bias=torch.ones(V), weight_grad=torch.zeros(V, H))


@pytest.fixture(params=["reference", "cpp"])  # triton_suite_edges.py puts "triton" in its place
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def full(op: str) -> dict[str, Any]:
    """Arguments with the optional ones, random."""
    g = torch.Generator().manual_seed(0)
    arguments = good(op) | (ROWS if op in LOSSES else {})
    if op in ("linear_grpo_loss", "linear_ce"):
        arguments |= HEAD
    if op == "grpo_loss":
        arguments["inplace"] = False
    if op.endswith("logprob"):
        arguments |= dict(temperature=0.9, logit_scale=1.1, softcap=3.0, vocab_size=V - 1)
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point() and name != "weight_grad":
            arguments[name] = torch.rand(value.shape, generator=g)
    return arguments


def tensors(out: Any) -> list[Tensor]:
    return list(out) if isinstance(out, tuple) else [out]


def call(op: str, arguments: dict[str, Any], backend: str) -> list[Tensor]:
    if op == "matched_iou" and backend == "triton":
        pytest.skip("has no Triton face")
    return tensors(getattr(uk, op)(**arguments, backend=backend))


def odd_values(value: Any) -> Iterator[Any]:
    yield from (None, "x", [1.0, 2.0], {}, object(), -1, 0, 0.5, math.nan, math.inf, 10**400, True)
    yield from (torch.tensor(1.0), torch.zeros(0), torch.zeros(0, 0), torch.zeros(5), torch.zeros(2, 3, 4))
    if isinstance(value, Tensor):
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float16, torch.float64):
            yield value.to(dtype)
        yield value.to("meta")
        yield value.to_sparse()
        yield torch.cat([value, value])
        yield value[:-1]
        yield value[:0]
        yield torch.full_like(value, True if value.dtype == torch.bool else -(2**31))


@pytest.mark.parametrize("op", DOORS)
def test_odd_values_are_refused_or_work(op: str, backend: str) -> None:
    """Each argument in turn, everything one could pass by mistake: ValueError, or a result; nothing else."""
    refused = 0
    for name, value in full(op).items():
        for odd in odd_values(value):
            try:
                call(op, {**full(op), name: odd}, backend)
            except ValueError as error:
                assert str(error).startswith((f"{op}: ", "backend 'cpp'")), f"{name}={odd}: {error}"
                refused += 1
    assert refused > 10


def strided(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


@pytest.mark.parametrize("op", DOORS)
def test_any_strides_work(op: str, backend: str) -> None:
    """Every tensor but weight_grad may be a view."""
    plain = full(op)
    views = {k: strided(v) if isinstance(v, Tensor) and v.dim() and k != "weight_grad" else v for k, v in plain.items()}
    assert not any(
        v.is_contiguous() for k, v in views.items() if isinstance(v, Tensor) and v.dim() and k[-5:] != "_grad"
    )
    torch.testing.assert_close(call(op, views, backend), call(op, plain, backend), rtol=1e-6, atol=1e-7)


CONFIGS = {
    "row": uk.GrpoConfig(),
    "response": uk.GrpoConfig(loss_type="gmpo", off_policy_mask_threshold=0.1),
    "batch": uk.GrpoConfig(top_entropy_quantile=0.5, entropy_coef=0.1, importance_sampling_level="sequence"),
}
INPUTS = {"grpo_loss": ["logits"], "linear_grpo_loss": ["hidden", "weight"], "policy_loss": ["logp", "entropy"]}


@pytest.mark.parametrize("coupling", CONFIGS)
@pytest.mark.parametrize("responses", [0, 2])
@pytest.mark.parametrize("op", LOSSES)
def test_a_call_without_rows(op: str, responses: int, coupling: str, backend: str) -> None:
    """Loss, metrics and gradients are 0, for a rank without a sample of its own."""
    arguments = {k: v[:0] if isinstance(v, Tensor) and v.dim() and len(v) == N else v for k, v in full(op).items()}
    arguments |= {k: v[:responses] for k, v in full(op).items() if isinstance(v, Tensor) and v.dim() and len(v) == B}
    arguments |= dict(cu_seqlens=torch.zeros(responses + 1, dtype=torch.int64), config=CONFIGS[coupling])
    arguments.pop("weight_grad", None)
    del arguments["entropy_threshold"]
    inputs = [arguments[name].requires_grad_() for name in INPUTS[op]]
    out = getattr(uk, op)(**arguments, backend=backend)
    assert out.loss.item() == 0 and out.metrics.tolist() == [0.0] * len(uk.METRICS) and out.logp.shape == (0,)
    if out.loss.requires_grad:
        grads = torch.autograd.grad(out.loss, inputs, allow_unused=True, materialize_grads=True)
        assert [g.shape for g in grads] == [x.shape for x in inputs] and not any(g.any() for g in grads)


def test_empty_input_of_the_other_doors(backend: str) -> None:
    none, ids, zero = torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    shapes = [
        uk.selective_logprob(torch.zeros(0, V), ids, backend=backend),
        uk.linear_logprob(torch.zeros(0, H), torch.ones(V, H), ids, backend=backend),
        uk.linear_ce(torch.zeros(0, H), torch.ones(V, H), ids, row_weight=none, backend=backend)[1:],
        uk.group_advantage(none, zero, backend=backend),
        (uk.difficulty_weight(none, normalize=True, backend=backend),),
        (uk.box_iou(torch.zeros(0, 4), torch.zeros(0, 4), backend=backend),),
    ]
    assert all(x.shape == (0,) for tuple_ in shapes for x in tuple_)
    assert uk.linear_ce(torch.zeros(0, H), torch.ones(V, H), ids, row_weight=none, backend=backend)[0].item() == 0
    pairs = uk.box_iou(torch.zeros(0, 4), torch.zeros(3, 4), mode="pairwise", backend=backend)
    assert pairs.shape == (0, 3)
    empty_groups = uk.group_advantage(none, torch.zeros(4, dtype=torch.int64), accuracy=none, backend=backend)
    assert [len(x) for x in empty_groups] == [0, 0, 3, 3, 3] and not any(x.any() for x in empty_groups)


def test_a_group_of_one(backend: str) -> None:
    """A = 0 and std = 0; with center_singletons=False the reward itself, not divided by a std that it has not."""
    rewards, groups = torch.tensor([0.7, 2.0, 1.0]), torch.tensor([0, 1, 3])
    got = uk.group_advantage(rewards, groups, backend=backend)
    assert got.advantages[0] == 0 and got.std[0] == 0 and got.mean[0] == rewards[0]
    config = uk.GrpoConfig(center_singletons=False, advantage_eps=0.0)
    raw = uk.group_advantage(rewards, groups, config=config, backend=backend)
    assert raw.advantages[0] == rewards[0] and raw.std[0] == 0 and raw.mean[0] == rewards[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("coupling", ["row", "response"])
def test_not_a_number_stays_in_its_response(coupling: str, bad: float, backend: str) -> None:
    """A row of NaN or inf makes the loss NaN; the gradients of other responses are those of the good batch."""
    arguments = full("grpo_loss") | dict(config=CONFIGS[coupling])
    del arguments["entropy_threshold"]

    def outcome(value: float | None) -> tuple[uk.GrpoOutput, Tensor]:
        z = arguments["logits"].clone()
        if value is not None:
            z[2] = value  # response 1
        z.requires_grad_()
        out = uk.grpo_loss(**{**arguments, "logits": z}, backend=backend)
        return out, torch.autograd.grad(out.loss, z)[0]

    (_, right), (out, grad) = outcome(None), outcome(bad)
    assert out.loss.isnan() and grad[2].isnan().all()
    torch.testing.assert_close(grad[[0, 1, 4, 5]], right[[0, 1, 4, 5]])


WRONG_OFFSETS = [[0, 2, 4], [0, 5, 2], [0, 3, 9], [1, 3, 6], [-7, 3, 6], [2**40, 2**41, -(2**40)]]


@pytest.mark.parametrize("offsets", WRONG_OFFSETS, ids=str)
@pytest.mark.parametrize("coupling", CONFIGS)
def test_offsets_that_nobody_looks_at(
    offsets: list[int], coupling: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU their values are not at hand: wrong ones make the loss NaN; nothing leaves its tensor, nothing waits."""
    for module in (_row_checks, _checks, door_of_groups):
        monkeypatch.setattr(module, "values_at_hand", lambda x: False)
    cu, right = torch.tensor(offsets), torch.tensor([0, 2, 6])
    for op in LOSSES:
        some = {k: v for k, v in full(op).items() if k not in ("phi", "entropy_threshold", "weight_grad", "advantages")}
        some |= dict(
            config=replace(CONFIGS[coupling], off_policy_mask_threshold=None), rewards=torch.tensor([0.3, 0.8])
        )
        whole = dict(some, cu_seqlens=right, cu_groups=torch.tensor([0, 2]))
        assert call(op, whole, backend)[0].isfinite()
        assert call(op, whole | dict(cu_seqlens=cu), backend)[0].isnan()
        assert call(op, whole | dict(cu_groups=torch.tensor([0, 3, 1])), backend)[0].isnan()
    groups = uk.group_advantage(torch.rand(6), cu, backend=backend)
    assert groups.advantages.isnan().all()
    with pytest.raises(ValueError, match="cu_groups must end at 6, got one offset"):
        uk.group_advantage(torch.rand(6), torch.tensor([0]), backend=backend)


DIRECT = """
    import torch
    from univg_kernels import _library, policy_loss
    from univg_kernels._program import row_program
    from univg_kernels._rows import PolicyRows
    from univg_kernels.config import GrpoConfig
    _library.load()
    ops = torch.ops.univg_kernels
    z, ids, one, cu = torch.randn(4, 9), torch.tensor([0, 8, 2, 3]), torch.ones(4), torch.tensor([0, 2, 4])
    program = tuple(row_program(PolicyRows(cu), GrpoConfig()))
    rows = (one, one, one, None, None, None, None, None, None)
    calls = {
        "logprob": [z, ids, 1.0, 0.0],
        "logprob_backward": [z, ids, one.double(), one, one, one, 1.0, 0.0],
        "logprob_backward_": [z, ids, one.double(), one, one, one, 1.0, 0.0],
        "grpo_head": [z, ids, *rows, *program, 1.0, 0.0, True],
        "grpo_head_": [z, ids, *rows, *program, 1.0, 0.0],
        "row_terms": [one, cu, one > 0, one[:2], None, one[:2], one[:2], one[0], "token-mean", True, 1.0],
        "policy_rows": [one, one, cu, *rows, *program],
        "ce_head_": [z, ids, one, 1.0, 0.0],
        "group_advantage": [one, cu, "group", 1e-4, True],
        "group_mean": [one, cu],
        "difficulty_weight": [one, "exp", 1.0, True],
        "box_iou": [torch.rand(4, 4), torch.rand(4, 4), False, False, False],
        "box_iou_backward": [one, torch.rand(4, 4), torch.rand(4, 4), False, False, False],
        "box_iou_ragged": [torch.rand(4, 4), torch.rand(4, 4), cu, cu, 8, False, False],
        "box_iou_ragged_backward": [torch.ones(8), torch.rand(4, 4), torch.rand(4, 4), cu, cu, False, False],
        "scan_boxes": [torch.arange(40, 80).byte(), cu, torch.tensor([0, 4]), 2, 8],
        "distinct_runs": [torch.arange(20, 60).byte(), cu, torch.tensor([True, False]), 2],
        "matched_iou": [torch.rand(4, 4).double(), torch.rand(4, 4).double(), cu, cu, ids, ids, False],
    }
    far = 2**40
    bad = [None, "no such choice", torch.zeros(0), torch.zeros(3), torch.zeros(40), torch.zeros(4, 2)]
    bad += [torch.zeros(4, dtype=torch.int64) + far, torch.tensor([-1, 9, far, -far]), torch.tensor([0, far, 4])]
    bad += [torch.tensor([0, 4, 2]), torch.tensor([-far, 2, 4]), torch.zeros(4, dtype=torch.bool), torch.tensor(1.0)]
    bad += [torch.zeros(4, dtype=torch.complex64), torch.zeros(4, 0), torch.zeros(8)[::2], torch.zeros(4, 18)[:, ::2]]
    bad += [torch.zeros(1).expand(4), torch.zeros(4).double(), torch.zeros(4, device="meta")]
    bad += [torch.zeros(4).to_sparse(), [], [1.0], 3, -1.0]
    assert {f"univg_kernels::{name}" for name in calls} == {
        s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("univg_kernels::")
    }
    for name, arguments in calls.items():
        op = getattr(ops, name)
        op(*[a.clone() if isinstance(a, torch.Tensor) else a for a in arguments])
        for place in range(len(arguments)):
            for value in bad:
                changed = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
                changed[place] = value
                print(name, place, value if not isinstance(value, torch.Tensor) else value.shape, flush=True)
                try:
                    op(*changed)
                except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError):
                    pass
    print("survived")
"""


def test_the_library_survives_direct_calls() -> None:
    """Past the doors there are no promises about words, but nothing reads or writes out of bounds and dies of it."""
    code = textwrap.dedent(DIRECT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[-1] == "survived", (done.returncode, lines[-1:], done.stderr[-500:])
