"""`box_iou` and `matched_iou`: exact rational numbers, gradients, boxes that are none, and SciPy as the oracle."""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import univg_kernels as uk
from torch import Tensor
from univg_kernels import _dispatch

BACKENDS = ["reference", "cpp"]
KINDS = [("iou", "continuous"), ("giou", "continuous"), ("iou", "univg_r1")]
Box = tuple[Fraction, ...]


def exact(a: Box, b: Box, kind: str, convention: str) -> Fraction:
    """The overlap in rational numbers, with the reward's rule as it is written down: edges shifted by 1 and back."""
    none = Fraction(0)
    if convention == "univg_r1":
        low, high = [max(a[i], b[i]) for i in (0, 1)], [min(a[i] - 1, b[i] - 1) for i in (2, 3)]
        some = all(p < q for p, q in zip(low, high, strict=True))
        inter = math.prod(q - p + 1 for p, q in zip(low, high, strict=True)) if some else none
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return inter / (sum(areas) - inter) if inter else none

    def area(x1: Fraction, y1: Fraction, x2: Fraction, y2: Fraction) -> Fraction:
        return max(x2 - x1, none) * max(y2 - y1, none)

    inter = area(*(max(a[i], b[i]) for i in (0, 1)), *(min(a[i], b[i]) for i in (2, 3)))
    union = area(*a) + area(*b) - inter
    iou = inter / union if union else none
    hull = area(*(min(a[i], b[i]) for i in (0, 1)), *(max(a[i], b[i]) for i in (2, 3)))
    return iou if kind == "iou" or not hull else iou - (hull - union) / hull


def draw(n: int, seed: int, dtype: torch.dtype = torch.float32, high: int = 1000) -> Tensor:
    """Proper, empty and inverted boxes, whole numbers and eighths among them."""
    g = torch.Generator().manual_seed(seed)
    boxes = torch.randint(0, high + 1, (n, 4), generator=g).to(dtype)
    boxes[::2] = torch.cat([boxes[::2, :2].minimum(boxes[::2, 2:]), boxes[::2, :2].maximum(boxes[::2, 2:])], 1)
    boxes[1::4] += torch.randint(0, 8, boxes[1::4].shape, generator=g) / 8
    return boxes


def rational(boxes: Tensor) -> list[Box]:
    return [tuple(Fraction(x) for x in box) for box in boxes.tolist()]


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


SIZES = ([3, 0, 1, 5, 2, 0], [2, 4, 0, 7, 1, 0])


def ragged(seed: int, dtype: torch.dtype = torch.float64, high: int = 20) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    cu1, cu2 = (torch.tensor([0, *itertools.accumulate(sizes)]) for sizes in SIZES)
    a, b = draw(int(cu1[-1]), seed, dtype, high), draw(int(cu2[-1]), seed + 1, dtype, high)
    return a, b, dict(offsets1=cu1, offsets2=cu2)


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


def gradients(a: Tensor, b: Tensor, backend: str, **options: Any) -> tuple[Tensor, ...]:
    leaves = (a.clone().requires_grad_(), b.clone().requires_grad_())
    out = uk.box_iou(*leaves, backend=backend, **options)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return torch.autograd.grad(out, leaves, weights)


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


NOTHING = [
    [float("nan"), 0, 4, 4], [0, float("nan"), 4, 4], [0, 0, float("nan"), 4], [0, 0, 4, float("nan")],
    [float("-inf"), 0, float("inf"), 4], [0, 0, float("inf"), 4], [0, 0, 1e30, 1e30], [-3e38, -3e38, 3e38, 3e38],
]  # fmt: skip


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


def scipy_totals(a: Tensor, b: Tensor, cu1: list[int], cu2: list[int], images: Any, convention: str) -> list[float]:
    optimize = pytest.importorskip("scipy.optimize")
    out = []
    for s in range(len(cu1) - 1):
        one, two = slice(cu1[s], cu1[s + 1]), slice(cu2[s], cu2[s + 1])
        table = uk.box_iou(a[one], b[two], mode="pairwise", convention=convention, backend="reference").double()
        if images is not None:
            table = table * (images[0][one, None] == images[1][None, two])
        out.append(float(table[optimize.linear_sum_assignment(table, maximize=True)].sum()))
    return out


@pytest.mark.parametrize("convention", ["continuous", "univg_r1"])
@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_matching_is_the_best_one(backend: Any, with_images: bool, convention: str) -> None:
    g = torch.Generator().manual_seed(10)
    sizes1, sizes2 = (torch.randint(0, 9, (60,), generator=g).tolist() for _ in range(2))
    sizes1[:2], sizes2[:2] = (25, 4), (3, 25)
    cu1, cu2 = ([0, *itertools.accumulate(sizes)] for sizes in (sizes1, sizes2))
    a, b = draw(cu1[-1], 11, torch.float64, 12), draw(cu2[-1], 12, torch.float64, 12)
    images = tuple(torch.randint(0, 3, (len(x),), generator=g) for x in (a, b)) if with_images else None
    given = dict(images1=images[0], images2=images[1]) if images else {}
    offsets = torch.tensor(cu1), torch.tensor(cu2)
    got = uk.matched_iou(a, b, *offsets, convention=convention, backend=backend, **given)
    want = scipy_totals(a, b, cu1, cu2, images, convention)
    np.testing.assert_allclose(got.total, want, rtol=0, atol=1e-12)
    assert len(got.partner) == len(a)
    for s in range(60):
        partners = got.partner[cu1[s] : cu1[s + 1]]
        taken = partners[partners >= 0]
        assert len(set(taken.tolist())) == len(taken) == got.matches[s]  # to one at most
        assert ((taken >= cu2[s]) & (taken < cu2[s + 1])).all()
    matched = got.partner >= 0
    each = uk.box_iou(a[matched], b[got.partner[matched]], convention=convention)
    torch.testing.assert_close(got.iou[matched], each)
    assert (each > 0).all() and not got.iou[~matched].any()
    if images:
        assert torch.equal(images[0][matched], images[1][got.partner[matched]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_is_not_good_enough(backend: Any) -> None:
    """The first box overlaps most with what only the second could have instead."""
    a, b = torch.tensor([[0, 0, 10, 10], [4, 0, 14, 10]]), torch.tensor([[1, 0, 11, 10], [0, 0, 6, 10]])
    got = uk.matched_iou(a, b, torch.tensor([0, 2]), torch.tensor([0, 2]), backend=backend)
    assert got.partner.tolist() == [1, 0] and got.matches.tolist() == [2]
    assert got.total.item() == pytest.approx(0.6 + 7 / 13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negative_image_is_any_image(backend: Any) -> None:
    a = torch.tensor([[0, 0, 10, 10]])
    offsets = torch.tensor([0, 1]), torch.tensor([0, 1])
    for one, two, total in ((0, 0, 1), (0, 1, 0), (-1, 1, 1), (0, -1, 1)):
        images = dict(images1=torch.tensor([one]), images2=torch.tensor([two]))
        assert uk.matched_iou(a, a, *offsets, backend=backend, **images).total.item() == total


@pytest.mark.parametrize("backend", BACKENDS)
def test_matching_of_nothing_and_of_no_boxes(backend: Any) -> None:
    none, zero = torch.zeros(0, 4), torch.tensor([0])
    assert [x.shape for x in uk.matched_iou(none, none, zero, zero, backend=backend)] == [(0,)] * 4
    bad = torch.tensor(NOTHING)
    whole = torch.tensor([0, len(bad)])
    got = uk.matched_iou(bad, torch.ones(2, 4), whole, torch.tensor([0, 2]), backend=backend)
    assert got.total.item() == 0 and (got.partner == -1).all()


def test_wrong_input_of_the_matching() -> None:
    a, cu = torch.ones(2, 4), torch.tensor([0, 2])
    for changed, message in (
        (dict(boxes1=torch.ones(2, 3)), r"matched_iou: boxes1 must be of shape \[any, 4\], got \[2, 3\]"),
        (dict(offsets1=torch.tensor([0, 1])), "matched_iou: offsets1 must end at 2"),
        (dict(offsets2=torch.tensor([0, 1, 2])), "matched_iou: offsets2 must have 2 entries like offsets1, got 3"),
        (dict(images1=torch.tensor([0, 1])), "images1 and images2 go together, got images1 only"),
        (dict(convention="pixel"), "convention must be one of 'continuous', 'univg_r1', got 'pixel'"),
        (dict(boxes1=a.to("meta"), boxes2=a.to("meta")), "boxes1 must be on the CPU, .*, got meta; use boxes1.cpu()"),
    ):
        arguments: dict[str, Any] = dict(boxes1=a, boxes2=a, offsets1=cu, offsets2=cu) | changed
        with pytest.raises(ValueError, match=message):
            uk.matched_iou(**arguments)


def test_a_large_matching_takes_no_time() -> None:
    """300 boxes with 300: the naive search would not end; SciPy finds the same sum."""
    a, b = draw(300, 13, torch.float64, 60), draw(300, 14, torch.float64, 60)
    cu = [0, 300]
    got = uk.matched_iou(a, b, torch.tensor(cu), torch.tensor(cu))
    assert got.total.item() == pytest.approx(scipy_totals(a, b, cu, cu, None, "continuous")[0], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_the_cuda_kernels_compile_without_spills(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    known = nvcc and subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    if nvcc is None or architecture not in (known or []):
        pytest.skip(f"no nvcc that knows {architecture}")
    flags = ("-std=c++20", f"-arch={architecture}", "-O3", "--expt-relaxed-constexpr", "--fmad=false", "-cubin")
    include = str(Path(torch.__file__).parent / "include")
    torch_flags = ("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", include)
    source = Path(__file__).parents[2] / "csrc" / "cuda" / "box_iou.cu"
    command = [nvcc, *flags, *torch_flags, "-Xptxas", "-v", "-o", str(tmp_path / "box.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(frames) == 18 and set(frames) == {("0", "0", "0")}  # three kernels, three kinds, two dtypes


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["aligned", "pairwise", "ragged"])
@pytest.mark.parametrize(("kind", "convention"), KINDS)
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_on_a_gpu(backend: Any, kind: str, convention: str, mode: str, dtype: torch.dtype) -> None:
    if backend == "cuda" and not _dispatch._has_cuda_ops():
        pytest.skip("needs a library built with CUDA")
    a, b, offsets = ragged(7, dtype, high=6)
    options = dict(mode=mode, kind=kind, convention=convention)
    if mode == "aligned":
        a, b = draw(5000, 8, dtype, 9), draw(5000, 9, dtype, 9)
    here, there = (({k: v.to(d) for k, v in offsets.items()} if mode == "ragged" else {}) for d in ("cpu", "cuda"))
    got = uk.box_iou(a.cuda(), b.cuda(), backend=backend, **options, **there)
    torch.testing.assert_close(got.cpu(), uk.box_iou(a, b, backend="reference", **options, **here))
    grads = gradients(a.cuda(), b.cuda(), backend, **options, **there)
    for one, two in zip(grads, gradients(a, b, "reference", **options, **here), strict=True):
        torch.testing.assert_close(one.cpu(), two)


IN_THE_INTERPRETER = """
import itertools, torch, univg_kernels as uk
g = torch.Generator().manual_seed(2)
boxes = torch.randint(0, 5, (700, 4), generator=g).double()
boxes[3, 1], boxes[9, 2], boxes[11] = float("nan"), float("inf"), 1e200
cu = torch.tensor([0, 3, 3, 20]), torch.tensor([0, 2, 9, 30])
cases = {
    "aligned": (boxes, boxes.roll(1, 0), {}),
    "pairwise": (boxes[:40], boxes[40:77], {}),
    "ragged": (boxes[:20], boxes[20:50], dict(offsets1=cu[0], offsets2=cu[1])),
}
for (mode, (a, b, more)), dtype, (kind, convention) in itertools.product(
    cases.items(), (torch.float32, torch.float64), (("iou", "continuous"), ("giou", "continuous"), ("iou", "univg_r1"))
):
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.to(dtype).requires_grad_() for x in (a, b)]
        out = uk.box_iou(*leaves, mode=mode, kind=kind, convention=convention, backend=backend, **more)
        weights = torch.linspace(-1, 2, out.numel(), dtype=dtype).view(out.shape)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, weights)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
"""


def test_triton_face_with_gradients() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", IN_THE_INTERPRETER], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
