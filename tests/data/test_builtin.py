"""The built-in data: every answer can be verified from the pixels."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from univg_fast.data.builtin import TASKS, BuiltinConfig, pictures
from univg_fast.data.builtin.pictures import make_crops
from univg_fast.data.builtin.shapes import COLOURS, SHAPES, Object, draw, mask
from univg_fast.data.builtin.write import drafts

CONFIG = BuiltinConfig(seed=11, image_size=56, images_per_sample=(2, 4), crops=26, num_sft=80, num_grpo=20, num_eval=40)
NAMED = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


def pixels(image, box):
    """The part of an image inside a box of 0-1000; every coordinate must fall between two pixels."""
    height, width = image.shape[:2]
    edges = [box[0] * width / 1000, box[1] * height / 1000, box[2] * width / 1000, box[3] * height / 1000]
    assert all(edge == int(edge) for edge in edges)
    x1, y1, x2, y2 = map(int, edges)
    return image[y1:y2, x1:x2]


def bounding_box(where):
    """Tight box of a mask, 0-1000."""
    height, width = where.shape
    xs, ys = np.flatnonzero(where.any(0)), np.flatnonzero(where.any(1))
    box = (xs[0] / width, ys[0] / height, (xs[-1] + 1) / width, (ys[-1] + 1) / height)
    return tuple(round(1000 * edge) for edge in box)


def of_colour(image, name):
    return (image == np.array(COLOURS[name], np.uint8)).all(-1)


def of_task(task, **changes):
    config = replace(CONFIG, tasks=(task,), **changes)
    return [draft for _, draft in drafts(config, "sft")]


def test_a_longer_file_begins_with_the_shorter_one():
    short = list(drafts(replace(CONFIG, num_sft=6), "sft"))
    long = list(drafts(replace(CONFIG, num_sft=12), "sft"))[:6]
    for (_, one), (_, other) in zip(short, long, strict=True):
        assert one.question == other.question and one.box == other.box
        assert all(np.array_equal(a, b) for a, b in zip(one.images, other.images, strict=True))


def test_a_lattice_that_does_not_divide_1000_is_rounded():
    for draft in of_task("group_grounding", lattice=3, image_size=42, confusable=0.0):
        colour = NAMED.search(draft.question)[1]
        assert bounding_box(of_colour(draft.images[draft.target_image], colour)) == draft.box
        assert set(draft.box) <= {0, 333, 667, 1000}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [7, 8, 14, 15, 28, 56])
def test_a_shape_touches_all_four_sides_of_its_square(shape, side):
    assert mask(shape, side).shape == (side, side)
    assert bounding_box(mask(shape, side)) == (0, 0, 1000, 1000)


def test_no_photograph_has_the_colour_of_an_object(monkeypatch):
    plain = [Image.new("RGB", (64, 64), colour) for colour in COLOURS.values()]
    monkeypatch.setattr(pictures, "load_pictures", lambda: plain)
    crops = make_crops(np.random.default_rng(0), len(plain), 32, contrast=1.0)
    assert not any(of_colour(crops, name).any() for name in COLOURS)
    assert all(np.abs(crops - np.array(c, np.int16)).max(-1).min() == 1 for c in COLOURS.values())


def test_shapes_differ():
    masks = [mask(shape, 14).tobytes() for shape in SHAPES]
    assert len(set(masks)) == len(SHAPES)


def test_an_object_partly_outside_is_clipped_not_moved():
    image = np.zeros((40, 40, 3), np.uint8)
    draw(image, Object("red", "square", -1, 3, 2), cell=10)
    assert bounding_box(of_colour(image, "red")) == (0, 750, 250, 1000)


def test_group_grounding_box_is_the_colours_bounding_box():
    # without confusable distractors the target's colour is in no other object
    for draft in of_task("group_grounding", confusable=0.0):
        colour, shape = NAMED.search(draft.question).groups()
        holders = [i for i, image in enumerate(draft.images) if of_colour(image, colour).any()]
        assert holders == [draft.target_image]
        assert bounding_box(of_colour(draft.images[draft.target_image], colour)) == draft.box
        assert NAMED.findall(draft.think)[-1] == (colour, shape)
        assert draft.think.endswith(f"in image {draft.target_image + 1}.")


def places_of(image, colour, shape, config):
    """Every (x, y, side) of the lattice where exactly this object is drawn, by comparing masks."""
    found = []
    for side in config.object_cells:
        wanted = mask(shape, side * config.cell)
        for y in range(config.lattice - side + 1):
            for x in range(config.lattice - side + 1):
                top, left, size = y * config.cell, x * config.cell, side * config.cell
                part = of_colour(image, colour)[top : top + size, left : left + size]
                if np.array_equal(part, wanted):
                    found.append((x, y, side))
    return found


@pytest.mark.parametrize("task", ["group_grounding", "refer_grounding"])
def test_the_described_object_is_unique_among_confusable_ones(task):
    # one size only: a large square holds small ones
    config = replace(CONFIG, object_cells=(1,), confusable=1.0, distractors=(3, 3))
    for draft in of_task(task, object_cells=(1,), confusable=1.0, distractors=(3, 3)):
        colour, shape = NAMED.findall(draft.think)[-1]
        searched = draft.images if task == "group_grounding" else draft.images[1:]
        found = [place for image in searched for place in places_of(image, colour, shape, config)]
        unit = 1000 // config.lattice
        assert found == [(draft.box[0] // unit, draft.box[1] // unit, 1)]
    assert {draft.target_image for draft in of_task("group_grounding")} == {0, 1, 2, 3}


LISTED = re.compile(rf"{NAMED.pattern} (top|middle|bottom) (left|centre|right) in image (\d)")


@pytest.mark.parametrize("task", ["group_grounding", "refer_grounding"])
def test_the_reasoning_lists_what_is_there(task):
    config = replace(CONFIG, object_cells=(1,))
    for draft in of_task(task, object_cells=(1,)):
        there = []
        for number, image in enumerate(draft.images, start=1):
            for colour in COLOURS:
                for shape in SHAPES:
                    for x, y, _ in places_of(image, colour, shape, config):
                        # thirds of a 4 x 4 lattice: a centre at 1/8, 3/8, 5/8, 7/8
                        row, column = (("first", "second", "second", "third")[at] for at in (y, x))
                        row = {"first": "top", "second": "middle", "third": "bottom"}[row]
                        column = {"first": "left", "second": "centre", "third": "right"}[column]
                        there.append((colour, shape, row, column, str(number)))
        listed, target = draft.think.split(". Target: ")
        assert sorted(LISTED.findall(listed)) == sorted(there)
        assert LISTED.findall(target)[0] in there
        assert target.endswith(f"in image {draft.target_image + 1}.")


@pytest.mark.parametrize("task", TASKS)
def test_a_frame_runs_around_every_image_under_the_objects(task):
    for draft in of_task(task, frame=3, num_sft=12):
        for image in draft.images:
            if image.shape[0] < CONFIG.image_size:
                continue  # the part that region cuts out
            edge = np.ones(image.shape[:2], bool)
            edge[3:-3, 3:-3] = False
            painted = np.any([of_colour(image, name) for name in COLOURS], axis=0)
            assert (image[edge & ~painted] == 255).all()
            assert not (image[~edge & ~painted] == 255).all()


def test_refer_grounding_shows_its_object_alone_in_image_1():
    for draft in of_task("refer_grounding", confusable=0.0):
        colour, _ = NAMED.findall(draft.think)[-1]
        colours = [name for name in COLOURS if of_colour(draft.images[0], name).any()]
        assert colours == [colour]
        assert bounding_box(of_colour(draft.images[1], colour)) == draft.box and draft.target_image == 1


def test_static_diff_box_holds_all_that_differs():
    edits = set()
    for draft in of_task("static_diff"):
        first, second = draft.images
        assert bounding_box((first != second).any(-1)) == draft.box
        edits.add(draft.think.removesuffix(" in image 2.").split()[-1])
    assert {"new", "gone"} < edits and edits - {"new", "gone"} <= set(COLOURS)


def test_static_diff_text_is_true():
    for draft in of_task("static_diff", confusable=0.0):
        colour, shape = NAMED.search(draft.think).groups()
        inside = [of_colour(pixels(image, draft.box), colour).any() for image in draft.images]
        assert inside == [
            not draft.think.endswith("new in image 2."),
            draft.think.endswith("new in image 2."),
        ]


@pytest.mark.parametrize("changes", [{}, {"distractors": (0, 0)}, {"background": 0.0}])
def test_region_comes_from_one_place_only(changes):
    for draft in of_task("region", **changes):
        image, cut = draft.images
        assert np.array_equal(pixels(image, draft.box), cut)
        side, cell = cut.shape[0], CONFIG.cell
        steps = range(0, CONFIG.image_size - side + 1, cell)
        equal = [np.array_equal(image[y : y + side, x : x + side], cut) for y in steps for x in steps]
        assert sum(equal) == 1


def test_object_tracking_follows_one_object():
    for draft in of_task("object_tracking", confusable=0.0):
        colour, _ = NAMED.search(draft.think).groups()
        given = tuple(int(n) for n in re.search(r"\((\d+),(\d+)\),\((\d+),(\d+)\)", draft.question).groups())
        assert bounding_box(of_colour(draft.images[0], colour)) == given
        assert bounding_box(of_colour(draft.images[-1], colour)) == draft.box
        assert given != draft.box and draft.target_image == len(draft.images) - 1
