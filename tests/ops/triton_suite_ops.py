"""The Triton faces of the small ops: group statistics, difficulty weights, boxes; and the registration of all ops."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops.triton_device import DEVICE
from univg_kernels._linear_sweeps import order_on_device
from univg_kernels._rows import PolicyRows
from univg_kernels._triton.partials import PARTIALS
from univg_kernels._triton.rows import row_arguments


@pytest.mark.parametrize(
    ("kind", "normalize"),
    [("exp", False), ("exp", True), ("power", False), ("power", True), ("log", False), ("none", True)],
)
def test_difficulty_weight(kind: str, normalize: bool) -> None:
    m = torch.linspace(0, 1, 300, device=DEVICE)
    got, want = (
        uk.difficulty_weight(m, kind=kind, power=1.5, normalize=normalize, backend=b) for b in ("triton", "reference")
    )
    torch.testing.assert_close(got, want)
    assert bool((got < 0).any()) == (kind == "log")


@pytest.mark.parametrize("center_singletons", [True, False])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_group_advantage(scale: str, dtype: torch.dtype, center_singletons: bool) -> None:
    """Groups of one, of none, of more than a block, and of equal rewards, which give 0 exactly."""
    g = torch.Generator().manual_seed(2)
    sizes = [4, 1, 0, 150, 8]
    rewards, accuracy = (torch.rand(sum(sizes), generator=g, dtype=dtype).to(DEVICE) for _ in range(2))
    rewards[-8:] = 0.1
    cu = torch.tensor([0, *sizes], device=DEVICE).cumsum(0)
    config = uk.GrpoConfig(scale_rewards=scale, normalize_difficulty=True, center_singletons=center_singletons)
    got, want = (
        uk.group_advantage(rewards, cu, accuracy=accuracy, config=config, backend=b) for b in ("triton", "reference")
    )
    for name, x, y in zip(got._fields, got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert bool((got.advantages[-8:] == 0).all())
    alone = uk.group_advantage(rewards, cu, config=config, backend="triton")
    assert bool((alone.phi == 1).all()) and bool((alone.accuracy_mean == 0).all())


@pytest.mark.parametrize("mode", ["aligned", "pairwise"])
@pytest.mark.parametrize("kind, convention", [("iou", "continuous"), ("giou", "continuous"), ("iou", "univg_r1")])
def test_box_iou(mode: str, kind: str, convention: str) -> None:
    """Touching, nested, empty, inverted and apart boxes; exact in fp32 for integers this small."""
    g = torch.Generator().manual_seed(2)
    boxes = torch.randint(0, 6, (700, 4), generator=g).to(DEVICE)
    a, b = (boxes, boxes.roll(1, 0)) if mode == "aligned" else (boxes[:40], boxes[40:77])
    got, want = (
        uk.box_iou(a, b, mode=mode, kind=kind, convention=convention, backend=k) for k in ("triton", "reference")
    )
    torch.testing.assert_close(got, want)


def ops_and_arguments() -> dict[str, tuple[Any, ...]]:
    """Each op of the Triton faces by its name, with arguments."""
    z, ids = torch.randn(3, 20, device=DEVICE), torch.tensor([1, 2, 3], device=DEVICE)
    row, two = torch.ones(3, device=DEVICE), torch.ones(2, device=DEVICE)
    head = (0.8, 5.0, 17)
    cu, partials = torch.tensor([0, 1, 3], device=DEVICE), torch.rand(PARTIALS, 3, device=DEVICE)
    rows = PolicyRows(cu, advantages=two, phi=two, old_logp=-row, denominator=torch.tensor(2, device=DEVICE))
    settings = row_arguments(rows, uk.GrpoConfig(entropy_coef=0.1, softcap=5.0), 3)
    out, both = (row.clone(), torch.empty(2, 3, device=DEVICE), partials, 0, 0.9, 5.0), (row.clone(), row.clone())
    boxes = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3]], dtype=torch.float32, device=DEVICE)
    kept = order_on_device(torch.tensor([False, True, True], device=DEVICE))
    layout = uk.shared_prefix([(5, [2, 1])]).to(DEVICE)
    q, k, v = (torch.randn(8, heads, 16, device=DEVICE) for heads in (4, 2, 2))
    prefix = (layout.query_tiles, layout.key_tiles, layout.segment_start, 0.25)
    return {
        "triton_shared_prefix": (q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), *prefix),
        "triton_shared_prefix_backward": (
            torch.ones(8, 4, 16, device=DEVICE),
            q.detach(),
            k.detach(),
            v.detach(),
            torch.ones(8, 4, 16, device=DEVICE),
            torch.ones(8, 4, device=DEVICE),
            *prefix,
        ),
        "triton_logprob": (z.clone().requires_grad_(), ids, *head, row > 0),
        "triton_logprob_backward": (z, ids, row.double() * 5, row, row, None, *head),
        "triton_logprob_backward_": (z.clone(), ids, row.double() * 5, row, row, row, *head),
        "triton_ce_rows_": (z.clone(), ids, row, 0.8, 0.0),
        "triton_grpo_rows": (z, z.clone(), ids, *out, *settings, 17),
        "triton_grpo_rows_": (z.clone(), ids, *out, *settings),
        "triton_policy_rows": (-row, row, *both, partials, 0, 2, *settings),
        "triton_reduce": (partials,),
        "triton_compact_": (z.clone(), kept.rows, kept.number),
        "triton_group_advantage": (two, two, cu.clamp(max=2), "batch", 1e-4, "exp", 1.0, False),
        "triton_difficulty": (two, "power", 2.0),
        "triton_box_iou": (boxes, boxes, True, True, False),
    }


def test_registered_ops_keep_their_promises() -> None:
    """Schemas tell the truth about what is written; fakes have the shapes of the real thing; autograd agrees."""
    for module in pkgutil.walk_packages(uk.__path__, "univg_kernels."):
        if module.name.endswith(".triton_impl") or "._triton." in module.name:
            importlib.import_module(module.name)
    prefix, calls = "univg_kernels::", ops_and_arguments()
    registered = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith(f"{prefix}triton_")}
    assert registered == {prefix + name for name in calls}
    for name, arguments in calls.items():
        torch.library.opcheck(getattr(torch.ops.univg_kernels, name).default, arguments)
