"""The Triton faces of the small ops: group statistics, difficulty weights, boxes."""

from __future__ import annotations

import pytest
import torch
import univg_kernels as uk
from ops.triton_device import DEVICE


@pytest.mark.parametrize("kind", ["exp", "power", "log", "none"])
@pytest.mark.parametrize("normalize", [False, True])
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
