"""`matched_iou`: SciPy as the oracle, images, and input that is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import univg_kernels as uk
from ops.box_cases import BACKENDS, NOTHING, draw
from torch import Tensor


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
