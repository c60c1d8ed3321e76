"""`box_iou`: exact rational numbers, gradients, and boxes that are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import univg_kernels as uk
from ops.box_cases import BACKENDS, KINDS, NOTHING, SIZES, draw, exact, gradients, ragged, rational


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "convention"), KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_to_rational_numbers(backend: Any, kind: str, convention: str, dtype: torch.dtype) -> None:
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    options = dict(kind=kind, convention=convention, backend=backend)
    for high in (8, 1000):  # small numbers: many ties, touching and equal boxes
        a, b = draw(400, 1, dtype, high), draw(400, 2, dtype, high)
        want = [float(exact(p, q, kind, convention)) for p, q in zip(rational(a), rational(b), strict=True)]
        got = uk.box_iou(a, b, **options)
        assert got.dtype == dtype
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=tolerance)
        want = [[float(exact(p, q, kind, convention)) for q in rational(b[:23])] for p in rational(a[:17])]
        np.testing.assert_allclose(uk.box_iou(a[:17], b[:23], mode="pairwise", **options), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", [1e30, 3e35, 1e-30, 1e-38, 2.0**-149])
@pytest.mark.parametrize(("kind", "convention"), KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fp32_areas_neither_overflow_nor_vanish(backend: Any, kind: str, convention: str, scale: float) -> None:
    """Coordinates from the smallest number that fp32 has to nearly its largest; one side of a box may be both."""
    a, b = (draw(300, seed) * scale for seed in (1, 2))
    a[::5, ::2] = draw(60, 3)[:, ::2] / scale if scale > 1e-35 else 1.0
    assert torch.isfinite(a).all() and torch.isfinite(b).all() and (a != 0).any(1).sum() > 290
    for one, two in ((a, b), (a, a), (a, a.roll(1, 0))):
        want = [float(exact(p, q, kind, convention)) for p, q in zip(rational(one), rational(two), strict=True)]
        got = uk.box_iou(one, two, kind=kind, convention=convention, backend=backend)
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-6)
    assert (uk.box_iou(a, b, backend=backend) > 0.01).sum() > 20


@pytest.mark.parametrize("scale", [2.0**100, 2.0**-100])
@pytest.mark.parametrize("kind", ["iou", "giou"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_slopes_scale_with_the_boxes(backend: str, kind: str, scale: float) -> None:
    a, b = draw(200, 4), draw(200, 5)
    scaled, plain = gradients(a * scale, b * scale, backend, kind=kind), gradients(a, b, backend, kind=kind)
    for got, want in zip(scaled, plain, strict=True):
        torch.testing.assert_close(got * scale, want, rtol=1e-6, atol=1e-12)
        assert want.abs().max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_fp64_ends_where_areas_would_overflow(backend: Any) -> None:
    unit = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    for power, want in ((510, 1.0), (511, 0.0), (-511, 1.0), (-600, 0.0)):
        box = unit * 2.0**power
        assert uk.box_iou(box, box, backend=backend).item() == want


@pytest.mark.parametrize(("kind", "convention"), KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_is_pairwise_of_each_segment(backend: Any, kind: str, convention: str) -> None:
    a, b, offsets = ragged(3)
    options = dict(kind=kind, convention=convention, backend=backend)
    got = uk.box_iou(a, b, mode="ragged", **offsets, **options)
    begin = uk.pair_offsets(**offsets)
    assert len(got) == begin[-1] == 3 * 2 + 5 * 7 + 2
    one, two = (torch.split(x, n) for x, n in zip((a, b), SIZES, strict=True))
    parts = [uk.box_iou(p, q, mode="pairwise", **options).flatten() for p, q in zip(one, two, strict=True)]
    torch.testing.assert_close(got, torch.cat(parts), rtol=0, atol=1e-15)
    assert begin.diff().tolist() == [len(part) for part in parts]


@pytest.mark.parametrize("mode", ["aligned", "pairwise", "ragged"])
@pytest.mark.parametrize(("kind", "convention"), KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_away_from_ties(backend: Any, kind: str, convention: str, mode: str) -> None:
    a, b, offsets = ragged(5, high=6)
    g = torch.Generator().manual_seed(6)
    a, b = (x + torch.rand(x.shape, generator=g, dtype=torch.float64) * 0.7 for x in (a, b))
    if mode == "aligned":
        a = a[: len(b)]
        b = b[: len(a)]
    options = dict(mode=mode, kind=kind, convention=convention, **(offsets if mode == "ragged" else {}))
    leaves = (a.requires_grad_(), b.requires_grad_())
    assert (uk.box_iou(*leaves, **options) > 0).any()
    assert torch.autograd.gradcheck(lambda p, q: uk.box_iou(p, q, backend=backend, **options), leaves)


@pytest.mark.parametrize("mode", ["aligned", "pairwise", "ragged"])
@pytest.mark.parametrize(("kind", "convention"), KINDS)
def test_both_faces_agree_at_ties(kind: str, convention: str, mode: str) -> None:
    """Equal edges, touching, empty and inverted boxes: a subgradient, and the same one everywhere."""
    a, b, offsets = ragged(7, high=3)
    options = dict(mode=mode, kind=kind, convention=convention, **(offsets if mode == "ragged" else {}))
    if mode == "aligned":
        a, b = draw(500, 8, torch.float64, 3), draw(500, 9, torch.float64, 3)
    for got, want in zip(gradients(a, b, "cpp", **options), gradients(a, b, "reference", **options), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_subgradient_of_equal_boxes_is_half_of_each_side(backend: str) -> None:
    """IoU falls whichever way an edge moves: the slopes -1/4 and +1/4 have the mean 0."""
    box = torch.tensor([[0.0, 0.0, 4.0, 2.0]], dtype=torch.float64)
    for grad in gradients(box, box, backend):
        torch.testing.assert_close(grad, torch.zeros(1, 4, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "convention"), KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_box_gives_0_and_no_gradient(backend: str, kind: str, convention: str) -> None:
    bad, good = torch.tensor(NOTHING), torch.tensor([[0.0, 0.0, 4.0, 4.0]]).expand(len(NOTHING), 4)
    for a, b in ((bad, good), (good, bad), (bad, bad)):
        got = uk.box_iou(a, b, kind=kind, convention=convention, backend=backend)  # type: ignore[arg-type]
        assert torch.equal(got, torch.zeros(len(NOTHING)))
        for grad in gradients(a, b, backend, kind=kind, convention=convention):
            assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("box", [[2, 2, 2, 2], [1, 3, 3, 3], [3, 3, 1, 1], [3, 1, 1, 3], [9, 9, 12, 12], [4, 0, 6, 4]])
def test_empty_inverted_and_distant_boxes(box: list[int], backend: Any) -> None:
    a, b = torch.tensor([box], dtype=torch.float32), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    for convention in ("continuous", "univg_r1"):
        assert uk.box_iou(a, b, convention=convention, backend=backend).item() == 0
    assert all(torch.equal(g, torch.zeros(1, 4)) for g in gradients(a, b, backend))
    assert -1 <= uk.box_iou(a, b, kind="giou", backend=backend).item() <= 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers_that_fp32_does_not_hold(dtype: torch.dtype, backend: Any) -> None:
    box = torch.tensor([[2**25, 0, 2**25 + 1, 10]], dtype=dtype)
    iou = uk.box_iou(box, box, backend=backend)
    assert iou.tolist() == [1.0] and iou.dtype == torch.float32


def test_wrong_offsets() -> None:
    a, b, offsets = ragged(3)
    with pytest.raises(ValueError, match="offsets1 and offsets2 go with mode 'ragged', got mode 'ragged' with neither"):
        uk.box_iou(a, b, mode="ragged")
    with pytest.raises(ValueError, match="go with mode 'ragged', got mode 'pairwise' with offsets1 and offsets2"):
        uk.box_iou(a, b, mode="pairwise", **offsets)
    with pytest.raises(ValueError, match="go with mode 'ragged', got mode 'ragged' with offsets1"):
        uk.box_iou(a, b, mode="ragged", offsets1=offsets["offsets1"])
    with pytest.raises(ValueError, match="offsets2 must have 7 entries like offsets1, got 2"):
        uk.box_iou(a, b, mode="ragged", offsets1=offsets["offsets1"], offsets2=torch.tensor([0, len(b)]))
    with pytest.raises(ValueError, match="offsets1 must end at 11"):
        uk.box_iou(a, b, mode="ragged", offsets1=torch.tensor([0, 3]), offsets2=torch.tensor([0, len(b)]))
