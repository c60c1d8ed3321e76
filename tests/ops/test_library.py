"""Registration, dispatch and packaging laws of univg_kernels."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import univg_kernels as uk
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from univg_kernels import _dispatch, _library

PACKAGE = Path(uk.__file__).parent


def test_import_loads_nothing_of_the_trainer() -> None:
    code = (
        "import sys, univg_kernels as uk\n"
        "roots = {m.split('.')[0] for m in sys.modules}\n"
        "print(sorted(roots & {'univg_fast', 'transformers', 'deepspeed', 'kernels'}),"
        " [m for m in sys.modules if m.startswith('univg_kernels.') and m.endswith('_impl')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_imports_point_down() -> None:
    """univg_kernels imports torch, triton and the standard library; nothing else, not even inside a function."""
    allowed = {"torch", "triton", "univg_kernels", *sys.stdlib_module_names}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            foreign = {n.split(".")[0] for n in names} - allowed
            assert not foreign, f"{path.name}:{node.lineno} imports {foreign}"


def test_layout() -> None:
    """An op is a folder of four files; `kernels/` is no package (it would shadow another project's)."""
    assert not (PACKAGE.parent / "__init__.py").exists()
    doors = [name for name in uk.__all__ if (PACKAGE / name).is_dir()]
    assert len(doors) == 9
    for door in doors:
        files = {p.name for p in (PACKAGE / door).glob("*.py")}
        assert files == {"__init__.py", "reference.py", "cpp_impl.py", "triton_impl.py"}, door


def test_resolve() -> None:
    assert uk.resolve("cpu") == "cpp"
    assert uk.resolve(torch.device("cuda", 3)) == "triton"
    assert uk.resolve("cpu", "reference") == uk.resolve("cuda", "reference") == "reference"
    with pytest.raises(ValueError, match="backend 'cpp' needs CPU tensors, got cuda"):
        uk.resolve("cuda", "cpp")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "PATH", None)
    assert uk.resolve("cpu") == "reference"
    with pytest.raises(ValueError, match=r"_C is not built; .*pip install --no-build-isolation \."):
        uk.resolve("cpu", "cpp")


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_loaded", {})
    caplog.set_level(logging.INFO, logger="univg_kernels")
    for _ in range(3):
        uk.difficulty_weight(torch.ones(1))
    assert [r.getMessage() for r in caplog.records] == ["difficulty_weight runs on cpu through its cpp face"]


def _rows(n: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [
        torch.linspace(-1, 1, n, dtype=dtype),
        torch.ones(n, dtype=dtype),
        torch.full((n,), 0.5, dtype=dtype),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    """Schemas tell the truth, fakes have the shapes of the real thing, autograd and AOT agree with eager."""
    for op in uk.__all__:
        if find_spec(f"univg_kernels.{op}"):
            import_module(f"univg_kernels.{op}.cpp_impl")  # registers the fakes

    ops, maths = torch.ops.univg_kernels, torch.float64 if dtype == torch.float64 else torch.float32
    z = torch.randn(4, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.tensor([0, 5, 32, 7])
    opcheck(ops.logprob.default, (z.clone().requires_grad_(), ids, 0.8))
    one = torch.ones(4, dtype=maths)
    opcheck(ops.logprob_backward.default, (z, ids, one * 5, one, one, one, 0.8))
    opcheck(ops.logprob_backward_.default, (z.clone(), ids, one * 5, one, one, one, 0.8))
    settings = ("grpo", 0.2, 0.2, float("inf"), 0.04)
    for old in (None, -one):
        for with_grad in (True, False):
            logits = z.clone().requires_grad_(with_grad)
            opcheck(ops.grpo_head.default, (logits, ids, *_rows(4, maths), old, old, *settings, 0.9, with_grad))
        opcheck(ops.grpo_head_.default, (z.clone(), ids, *_rows(4, maths), old, old, *settings, 0.9))
        opcheck(ops.policy_rows.default, (-one, old, *_rows(4, maths), old, old, *settings))
    opcheck(ops.ce_head_.default, (z.clone(), ids, one))
    opcheck(ops.group_advantage.default, (one.clone(), torch.tensor([0, 1, 4]), "group", 1e-4))
    opcheck(ops.group_mean.default, (one.clone(), torch.tensor([0, 1, 4])))
    opcheck(ops.difficulty_weight.default, (one * 0.5, "power", 2.0, True))
    boxes = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3]], dtype=maths)
    for pairwise in (True, False):
        opcheck(ops.box_iou.default, (boxes, boxes, pairwise, False, False))


@pytest.mark.parametrize(
    "op", ["selective_logprob", "linear_logprob", "linear_ce", "grpo_loss", "linear_grpo_loss", "policy_loss"]
)
def test_compiled_equals_eager(make_case, op: str) -> None:
    """The doors trace without a graph break, backward pass included."""
    names = {"selective_logprob": ["logits"], "grpo_loss": ["logits"], "policy_loss": ["logp"]}
    counter = CompileCounterWithBackend("aot_eager")

    def outcome(compiled: bool, case) -> list[torch.Tensor]:
        inputs = [t.requires_grad_() for t in case.arguments(op if "loss" in op else "grpo_loss")[0]]
        if op in ("linear_logprob", "linear_ce"):
            inputs = [getattr(case, n).clone().requires_grad_() for n in ("hidden", "weight", "bias")]
        kwargs = dict(token_ids=case.token_ids) if op != "policy_loss" else {}
        if "loss" in op:
            kwargs |= dict(cu_seqlens=case.cu_seqlens, **case.rows)
        if op == "linear_ce":
            kwargs["row_weight"] = torch.linspace(0, 1, len(case.token_ids))

        def loss(*x: torch.Tensor) -> torch.Tensor:
            named = dict(zip(names.get(op, ["hidden", "weight", "bias"]), (t * 1.5 for t in x), strict=True))
            out = getattr(uk, op)(**named, **kwargs)
            return (out[0] * 0.7).sum() if op != "linear_logprob" else (out[0] - out[1]).sum()

        loss(*inputs)  # the face is imported outside of the trace
        value = (torch.compile(loss, fullgraph=True, backend=counter) if compiled else loss)(*inputs)
        return [value, *torch.autograd.grad(value, inputs)]

    case = make_case(seed=20).to(torch.float32)
    torch.testing.assert_close(outcome(True, case), outcome(False, case))
    assert counter.frame_count == 1


def test_library_speaks_only_the_stable_abi() -> None:
    """No symbol of at::, c10:: or Python is asked for: one binary serves every Python and later torch."""
    assert _library.PATH is not None
    names = subprocess.run(
        ["nm", "-DC", "--undefined-only", _library.PATH], capture_output=True, text=True, check=True
    ).stdout
    wanted = [line.split(maxsplit=1)[1] for line in names.splitlines()]
    assert any("aoti_torch" in name for name in wanted)
    assert [n for n in wanted if n.startswith(("at::", "c10::", "torch::jit", "_Py", "Py"))] == []
