"""Conversion both ways to one unit, the resize of transformers, and numbers that contradict their system."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from univg_fast.data.coordinates import SYSTEMS, from_norm1000, smart_resize, to_norm1000
from univg_fast.data.scan import scan

sides = st.integers(28, 4000)
ends = st.tuples(st.integers(0, 1000), st.integers(0, 1000)).filter(lambda pair: pair[0] < pair[1])


@given(xs=ends, ys=ends, size=st.tuples(sides, sides), system=st.sampled_from(SYSTEMS))
@settings(deadline=None, max_examples=400)
def test_there_and_back_to_one_unit(xs, ys, size, system):
    """Of the coarser of the two: a pixel of a small image is several thousandths of it."""
    resized = smart_resize(size)
    box = (xs[0], ys[0], xs[1], ys[1])
    there = from_norm1000(box, system, size, resized)
    back = to_norm1000(there, system, size, resized)
    width, height = {"pixel": size, "resized": resized}.get(system, (1000, 1000))
    unit = [max(1, 1000 / side) for side in (width, height, width, height)]
    assert all(abs(a - b) <= u for a, b, u in zip(box, back, unit, strict=True))
    assert back[0] < back[2] and back[1] < back[3]
    if system in ("norm1", "norm1000"):
        assert back == box


@given(size=st.tuples(sides, sides), data=st.data(), system=st.sampled_from(("pixel", "resized")))
@settings(deadline=None, max_examples=400)
def test_pixels_there_and_back_to_one_unit(size, data, system):
    """Of the coarser: a thousandth of a large image is several pixels."""
    resized = smart_resize(size)
    width, height = size if system == "pixel" else resized
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height)))
    back = from_norm1000(to_norm1000(box, system, size, resized), system, size, resized)
    for low, high, side in ((0, 2, width), (1, 3, height)):
        thin = (box[high] - box[low]) * 1000 < side  # widened to a unit, and then rounded to pixels
        unit = max(1, side / 1000 + 0.5 * thin)
        assert abs(box[low] - back[low]) <= unit and abs(box[high] - back[high]) <= unit


@pytest.mark.parametrize(
    ("box", "system", "expected"),
    [
        ((0.1, 0.2, 0.3, 0.4), "norm1", (100, 200, 300, 400)),
        ((0, 0, 1, 1), "norm1", (0, 0, 1000, 1000)),
        ((30, 10, 60, 40), "pixel", (500, 250, 1000, 1000)),
        ((30, 10, 60.9, 40), "pixel", (500, 250, 1000, 1000)),  # within a pixel of the edge
        ((42, 14, 84, 56), "resized", (500, 250, 1000, 1000)),
        ((0.5, 0.5, 0.5001, 0.9), "norm1", (500, 500, 501, 900)),  # thinner than a unit
        ((0.99999, 0.1, 1, 0.2), "norm1", (999, 100, 1000, 200)),
    ],
)
def test_values(box, system, expected):
    assert to_norm1000(box, system, (60, 40), (84, 56)) == expected


@pytest.mark.parametrize(
    ("box", "system", "message"),
    [
        ((0, 0, 62, 40), "pixel", "inside of the image .pixel: 60 x 40."),
        ((0, 0, 1.1, 1), "norm1", "inside of the image"),
        ((0, 0, float("inf"), 1), "norm1", "finite"),
        ((5, 5, 5, 9), "pixel", "inverted or without area"),
        ((0, 0, 1, 1), "polar", "expected one of norm1, norm1000, pixel, resized, got 'polar'"),
    ],
)
def test_refusals(box, system, message):
    with pytest.raises(ValueError, match=message):
        to_norm1000(box, system, (60, 40), (84, 56))


@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)), limits=st.sampled_from([(3136, 401408), (784, 50176)])
)
@settings(deadline=None, max_examples=300)
def test_the_resize_is_that_of_transformers(size, limits):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    if max(size) > 200 * min(size):
        with pytest.raises(ValueError, match="ratio"):
            smart_resize(size, 28, *limits)
        return
    height, width = theirs(size[1], size[0], 28, *limits)
    assert smart_resize(size, 28, *limits) == (width, height)


@pytest.mark.parametrize(
    ("boxes", "system", "warning"),
    [
        ([[0, 0, 1, 1]] * 3, "norm1000", "3 boxes read as norm1000 have no number above 1: norm1?"),
        ([[0.1, 0.1, 0.5, 0.5]] * 3, "norm1000", "no number above 1: norm1?"),
        ([[0.1, 0.1, 0.5, 0.5]] * 3, "pixel", "no number above 1: norm1?"),
        ([[0, 0, 500, 250]] * 3, "norm1", "numbers up to 500: norm1000 or pixel?"),
        ([[0, 0, 1920, 250]] * 3, "norm1000", "numbers up to 1920: pixel?"),
        ([[0, 0, 30, 20], [0, 0, 900, 800]], "pixel", "1 are none inside of their images, and no number exceeds 1000"),
        ([[0, 0, 500, 250]], "norm1000", None),
        ([[0, 0, 30, 20]], "pixel", None),
    ],
)
def test_a_contradiction_is_told(folder, boxes, system, warning):
    path = folder.write("x.jsonl", "".join(json.dumps(folder.stage2(answer=box)) + "\n" for box in boxes))
    _, report = scan([{"path": str(path), "coordinates": system}])
    assert (report.warnings == ()) if warning is None else (warning in report.warnings[0])


def test_a_box_in_pixels_of_images_of_several_sizes_needs_its_image(folder):
    Image.new("RGB", (100, 100)).save(folder.path / "b.png")
    path = folder.jsonl(folder.stage2(answer=[0, 0, 50, 25], target_image=1), folder.stage2(answer=[0, 0, 30, 10]))
    records, report = scan([{"path": str(path), "coordinates": "pixel"}])
    assert [record.box for record in records] == [(0, 0, 500, 250)]
    assert "which image does each belong to?" in report.bad[0].message
