"""The template builder: what it says is true of the boxes, leaks nothing, and depends on the seed alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from univg_fast.cot.build import asked, from_templates
from univg_fast.cot.facts import Thing, UnknownImage, place, relations, size, things_of
from univg_fast.cot.filters import Thresholds, removed_by
from univg_fast.cot.templates import TEMPLATES, traces
from univg_fast.structs import Record, Target

LEFT, RIGHT, WIDE = (50, 400, 250, 600), (700, 100, 900, 300), (0, 0, 1000, 1000)


def record(*targets: Target, images: int = 3, question: str = "Where is it?", style: str = "univg_r1") -> Record:
    return Record("u1", "f:1", tuple(f"{i}.png" for i in range(images)), question, targets, answer_style=style)


def test_words_for_places_and_sizes() -> None:
    assert [place(box) for box in (LEFT, RIGHT, WIDE)] == ["on the left", "in the upper right", "in the centre"]
    assert place((400, 800, 600, 1000)) == "in the lower middle"
    assert [size(box) for box in ((0, 0, 100, 100), LEFT, (0, 0, 400, 500), WIDE)] == [
        "tiny",
        "small",
        "of medium size",
        "large",
    ]


def test_relations_within_an_image_and_across() -> None:
    a, b = Thing("a", 0, LEFT, True), Thing("b", 0, RIGHT, True)
    assert relations(a, b) == ["lies further to the left than", "lies below"]
    far = Thing("b", 1, RIGHT, False)
    assert relations(a, far) == ["lies further to the left in its image than", "lies lower in its image than"]
    assert relations(far, a) == ["lies further to the right in its image than", "lies higher in its image than"]
    assert relations(a, Thing("w", 1, WIDE, False))[-1] == "is smaller in its image than"
    assert relations(a, Thing("s", 1, (60, 400, 250, 600), False)) == ["stands at about the same place as"]


def test_a_trace_says_what_is_where_compares_and_routes() -> None:
    made = record(Target(LEFT, 0, "red cup"), Target(RIGHT, 2, "blue dog"))
    for template, trace in zip(TEMPLATES, traces(made, ("object", "image"), len(TEMPLATES), 0), strict=True):
        assert "the red cup" in trace.lower() and "on the left" in trace and "in the upper right" in trace
        assert "further to the left in its image than the blue dog" in trace or "further to the right" in trace
        assert trace.endswith("targets are in Image-1 and Image-3.") and template
        assert re.search(r"Image-2(?! and)", trace)


def test_levels_add_sentences() -> None:
    made = record(Target(LEFT, 0, "red cup"), Target(RIGHT, 2, "blue dog"))
    by_object, by_image = (traces(made, (level,), 1, 0)[0] for level in ("object", "image"))
    assert "on the left" in by_object and "further" not in by_object and "Image-2" not in by_object
    assert "further" in by_image and "Image-2" in by_image and "on the left" not in by_image


def test_a_box_in_the_question_is_an_object_too() -> None:
    question = (
        "Image-1 has <|object_ref_start|>a hat<|object_ref_end|><|box_start|>(50,400),(250,600)<|box_end|>: find it"
    )
    things = things_of(record(Target(RIGHT, 1), images=2, question=question))
    told = [(t.name, t.image, t.is_target) for t in things]
    assert told == [("the object asked for", 1, True), ("a hat", 0, False)]
    behind = things_of(record(Target(RIGHT, 1), images=2, question="The object at (50,400),(250,600) of image 1?"))
    assert behind[1].image == 0 and behind[1].box == LEFT


def test_things_of_one_name_are_told_apart() -> None:
    names = [t.name for t in things_of(record(Target(LEFT, 0, "dog"), Target(RIGHT, 0, "dog"), Target(WIDE, 1, "dog")))]
    assert names == ["the dog (first)", "the dog (second)", "the dog"]


def test_a_record_that_does_not_say_its_image_is_refused() -> None:
    with pytest.raises(UnknownImage, match="which of its 3 images"):
        traces(record(Target(LEFT)), ("object",), 1, 0)
    assert "Image-1" in traces(record(Target(LEFT), images=1), ("object",), 1, 0)[0]


def test_the_seed_decides_and_templates_vary() -> None:
    made = [record(Target(LEFT, 1, "cup"))] + [
        Record(f"u{i}", "f", ("0", "1"), "q", (Target(LEFT, 1),)) for i in range(40)
    ]
    again = [traces(r, ("object", "image"), 1, 7)[0] for r in made]
    assert again == [traces(r, ("object", "image"), 1, 7)[0] for r in made]
    assert len({trace.split()[0] + trace.split()[1] for trace in again}) >= len(TEMPLATES)
    assert again != [traces(r, ("object", "image"), 1, 8)[0] for r in made]


boxes = st.tuples(*[st.integers(0, 999)] * 2, *[st.integers(1, 400)] * 2).map(
    lambda v: (v[0], v[1], min(1000, v[0] + v[2]), min(1000, v[1] + v[3]))
)
labels = st.one_of(st.none(), st.sampled_from(["dog", "red cup", "Image-9", "box 7", "面"]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.builds(Target, boxes, st.integers(0, 3), labels), min_size=1, max_size=10),
    st.sampled_from(["univg_r1", "bbox_2d", "box_tokens"]),
    st.integers(0, 9),
)
def test_any_record_passes_its_own_filters(targets: list[Target], style: str, seed: int) -> None:
    made = asked(record(*targets, images=4, style=style))
    candidates, _ = from_templates(("object", "image"), 4, seed)(made)
    assert len(candidates) == 4
    assert [removed_by(c, made, [(640, 480)] * 4, Thresholds()) for c in candidates] == [None] * 4


def test_many_targets_make_no_endless_trace() -> None:
    many = [Target((10 * i, 10, 10 * i + 9, 90), i % 4, f"chair {'abcdefgh'[i % 8]}") for i in range(60)]
    made = asked(record(*many, images=4))
    (candidate,), _ = from_templates(("object", "image"), 1, 0)(made)
    assert candidate.think.count(".") <= 2 * 12 + 4 + 6 and removed_by(candidate, made, [], Thresholds()) is None
