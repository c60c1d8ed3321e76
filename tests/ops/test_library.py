"""Registration, dispatch and packaging laws of univg_kernels."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import univg_kernels as uk
from torch.library import opcheck
from univg_kernels import _dispatch, _library
from univg_kernels._program import row_program
from univg_kernels._rows import PolicyRows

from tests.ops.coupled import COUPLED

PACKAGE = Path(uk.__file__).parent


def test_import_loads_nothing_of_the_trainer() -> None:
    code = (
        "import sys, univg_kernels as uk\n"
        "roots = {m.split('.')[0] for m in sys.modules}\n"
        "print(sorted(roots & {'univg_fast', 'transformers', 'deepspeed', 'kernels', 'triton'}),"
        " [m for m in sys.modules if m.startswith('univg_kernels.') and m.endswith(('triton_impl', 'cuda_impl'))])"
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
    """An op is a folder of a door and its faces; `kernels/` is no package (it would shadow another project's)."""
    assert not (PACKAGE.parent / "__init__.py").exists()
    doors = {path.parent.name for path in PACKAGE.glob("*/reference.py")}
    assert doors == {name for name in uk.__all__ if (PACKAGE / name).is_dir()}
    more = {
        "grpo_loss": {"cuda_impl.py"},
        "policy_loss": {"table.py"},
        "box_iou": {"cuda_impl.py", "pairs.py"},
        "scan_boxes": {"pieces.py", "answers.py", "search.py"},
        "shared_prefix_attention": {"layout.py"},
    }
    for door in doors:
        files = {p.name for p in (PACKAGE / door).glob("*.py")} - more.get(door, set())
        on_cpu_only = ("matched_iou", "scan_boxes", "distinct_runs")
        triton = set() if door in on_cpu_only else {"triton_impl.py"}
        cpp = set() if door == "shared_prefix_attention" else {"cpp_impl.py"}  # the trainer's CPU face is torch's own
        assert files == {"__init__.py", "reference.py"} | cpp | triton, door


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


def _policy_arguments(n: int, dtype: torch.dtype, config: uk.GrpoConfig, full: bool) -> tuple[list[Any], list[Any]]:
    """(row tensors, program) as the C++ policy ops take them."""
    one = torch.ones(n, dtype=dtype)
    given = dict(old_logp=-one, ref_logp=-one, sampling_logp=-1.1 * one) if full else {}
    rows = PolicyRows(torch.tensor([0, 1, 1, n]), token_advantages=torch.linspace(-1, 1, n, dtype=dtype), **given)
    inputs = import_module("univg_kernels.policy_loss.cpp_impl").row_inputs(rows, config, n, dtype, one)
    return list(inputs), list(row_program(rows, config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    """Schemas tell the truth, fakes have the shapes of the real thing, autograd and AOT agree with eager."""
    for path in PACKAGE.glob("*/cpp_impl.py"):
        import_module(f"univg_kernels.{path.parent.name}.cpp_impl")  # registers the fakes

    checked, maths = set(), torch.float64 if dtype == torch.float64 else torch.float32

    def check(name: str, *arguments: Any) -> None:
        opcheck(getattr(torch.ops.univg_kernels, name).default, arguments)
        checked.add(f"univg_kernels::{name}")

    g = torch.Generator().manual_seed(0)
    z, ids = torch.randn(4, 33, generator=g).to(dtype), torch.tensor([0, 5, 32, 7])
    one = torch.ones(4, dtype=maths)
    for softmax in ((0.8, 0.0), (0.8, 5.0)):
        check("logprob", z.clone().requires_grad_(), ids, *softmax)
        check("logprob", z, ids, *softmax, torch.tensor([True, False, True, True]))
        check("logprob_backward", z, ids, one.double() * 5, one, one, one, *softmax)
        check("logprob_backward_", z.clone(), ids, one.double() * 5, one, one, one, *softmax)
        check("ce_head_", z.clone(), ids, one, *softmax)
    offsets, mask = torch.tensor([0, 1, 1, 4]), torch.tensor([True, False, True, True])
    check("row_terms", one, offsets, mask, None, one, None, one[:3], None, "token-mean", True, 0.0)
    check("row_terms", one, offsets, None, one[:3], None, one[:3], None, one[0], "seq-mean-token-mean", True, 0.0)
    for coupled, config in COUPLED.items():
        for full in (True, False):
            rows, program = _policy_arguments(4, maths, config, full)
            logp, entropy = (x.clone().requires_grad_() for x in (-one, one))
            check("policy_rows", logp, entropy, torch.tensor([0, 1, 1, 4]), *rows, *program)
            check("policy_rows", -one, None if config.entropy_coef == 0 else one, torch.tensor([0, 4]), *rows, *program)
            if coupled == "row":
                check("grpo_head_", z.clone(), ids, *rows, *program, 0.9, 0.0)
                for with_grad in (True, False):
                    logits = z.clone().requires_grad_(with_grad)
                    check("grpo_head", logits, ids, *rows, *program, 0.9, 5.0, with_grad)
    check("group_advantage", one.clone(), torch.tensor([0, 1, 4]), "group", 1e-4, False)
    check("group_mean", one.clone(), torch.tensor([0, 1, 4]))
    check("difficulty_weight", one * 0.5, "power", 2.0, True)
    boxes = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3]], dtype=maths)
    offsets, grad, kinds = torch.tensor([0, 0, 2]), torch.ones(4, dtype=maths), (True, False)
    for pairwise in (True, False):
        check("box_iou", boxes.clone().requires_grad_(), boxes, pairwise, *kinds)
        check("box_iou_backward", grad.view(2, 2) if pairwise else grad[:2], boxes, boxes, pairwise, *kinds)
    check("box_iou_ragged", boxes.clone().requires_grad_(), boxes, offsets, offsets, 4, *kinds)
    check("box_iou_ragged_backward", grad, boxes, boxes, offsets, offsets, *kinds)
    for images in (None, offsets[1:]):
        check("matched_iou", boxes.double(), boxes.double(), offsets, offsets, images, images, False)
    text = torch.tensor(list(b"<answer>(1,2),(3,4)</answer>(5,6)"), dtype=torch.uint8)
    check("scan_boxes", text, torch.tensor([0, 28, 33]), torch.tensor([0, 4]), 2, 8)
    check("distinct_runs", text, torch.tensor([0, 28, 33]), torch.tensor([True, False]), 2)
    import_module("univg_kernels.scan_boxes.cpp_impl")
    text = torch.frombuffer(bytearray(b"<answer>(1,2),(3,4)</answer>"), dtype=torch.uint8)
    check("scan_boxes", text, torch.tensor([0, 0, len(text)]), torch.tensor([0, 4]), 1, 512)
    registered = {str(schema.name) for schema in torch._C._jit_get_all_schemas() if "univg_kernels::" in schema.name}
    assert checked == {name for name in registered if "::triton" not in name}  # those: tests/ops/triton_suite.py


def test_library_speaks_only_the_stable_abi() -> None:
    """No symbol of at::, c10:: or Python is asked for: one binary serves every Python and later torch."""
    assert _library.PATH is not None
    names = subprocess.run(
        ["nm", "-DC", "--undefined-only", _library.PATH], capture_output=True, text=True, check=True
    ).stdout
    wanted = [line.split(maxsplit=1)[1] for line in names.splitlines()]
    assert any("aoti_torch" in name for name in wanted)
    assert [n for n in wanted if n.startswith(("at::", "c10::", "torch::jit", "_Py", "Py"))] == []
