"""Traces from a record's boxes, labels and image numbers alone: no model, and no coordinates in them.

Object level says what lies where in which image; image level compares things across images and says which images do
not hold the target; every trace ends with the routing sentence. The words come from one of several templates.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from univg_fast.cot.facts import Thing, place, relations, size, things_of
from univg_fast.structs import Record

LEVELS = ("object", "image")
MAX_SEEN = 12  # things that object level describes
MAX_RELATIONS = 4  # sentences that compare two things
MAX_COMPARED = 8  # things of a record that are compared with one another


@dataclass(frozen=True)
class Template:
    """One way to say it. Every text may name {image}, {name}, … as its fields say."""

    opening: str  # {count}
    seen: str  # {image}, {name}, {place}, {size}
    across: str  # {name}, {image}, {relation}, {other}, {other_image}
    within: str  # {name}, {image}, {relation}, {other}
    without: str  # {image}
    routing: str  # {target}, {images}


TEMPLATES = (
    Template(
        opening="{count} to look at.",
        seen="In {image} there is {name}, {place}; it is {size}.",
        across="{name} in {image} {relation} {other} in {other_image}.",
        within="In {image}, {name} {relation} {other}.",
        without="{image} does not hold what is asked for.",
        routing="So the {target} in {images}.",
    ),
    Template(
        opening="I go through the pictures one by one: {count}.",
        seen="{image} shows {name} {place}, {size} within the picture.",
        across="Comparing the pictures, {name} of {image} {relation} {other} of {other_image}.",
        within="Inside {image}, {name} {relation} {other}.",
        without="The answer is not in {image}.",
        routing="Therefore the {target} in {images}.",
    ),
    Template(
        opening="First, what is there: {count}.",
        seen="{name} can be found in {image}, {place}; its extent is {size}.",
        across="Across the images, {name} ({image}) {relation} {other} ({other_image}).",
        within="Within {image}, {name} {relation} {other}.",
        without="Nothing in {image} answers the question.",
        routing="This leads to one conclusion: the {target} in {images}.",
    ),
    Template(
        opening="Before answering: {count}.",
        seen="Looking at {image}, I see {name} {place}. It is {size}.",
        across="As for the relation between the images: {name} in {image} {relation} {other} in {other_image}.",
        within="In {image} itself, {name} {relation} {other}.",
        without="I can rule out {image}.",
        routing="What remains is clear, the {target} in {images}.",
    ),
)


def traces(record: Record, levels: Sequence[str], number: int, seed: int) -> list[str]:
    """`number` different traces of a record at these levels; fewer where there are fewer templates.

    A function of (record, levels, seed) alone. UnknownImage where the record leaves that open.
    """
    things = things_of(record)
    chance = random.Random(f"{seed}/{record.uid}")
    chosen = chance.sample(TEMPLATES, min(number, len(TEMPLATES)))
    return [_trace(record, things, levels, template, chance) for template in chosen]


def _trace(
    record: Record, things: Sequence[Thing], levels: Sequence[str], template: Template, chance: random.Random
) -> str:
    number = len(record.images)
    said = [template.opening.format(count="there is one image" if number == 1 else f"there are {number} images")]
    if "object" in levels:
        said += [
            template.seen.format(image=image_name(t.image), name=t.name, place=place(t.box), size=size(t.box))
            for t in sorted(things[:MAX_SEEN], key=lambda t: t.image)
        ]
    holders = sorted({thing.image for thing in things if thing.is_target})
    if "image" in levels:
        said += _compared(things, template, chance)
        said += [template.without.format(image=image_name(i)) for i in range(number) if i not in holders]
    target = "target is" if sum(thing.is_target for thing in things) == 1 else "targets are"
    said.append(template.routing.format(target=target, images=_listed(holders)))
    return " ".join(sentence[:1].upper() + sentence[1:] for sentence in said)


def _compared(things: Sequence[Thing], template: Template, chance: random.Random) -> list[str]:
    """Sentences about pairs of things, those of two images first."""
    few = things[:MAX_COMPARED]
    facts = [(a, b, relation) for i, a in enumerate(few) for b in few[i + 1 :] for relation in relations(a, b)]
    chance.shuffle(facts)
    facts.sort(key=lambda fact: fact[0].image == fact[1].image)
    said = []
    for a, b, relation in facts[:MAX_RELATIONS]:
        words = template.within if a.image == b.image else template.across
        said.append(words.format(name=a.name, image=image_name(a.image), relation=relation, other=b.name,
                                 other_image=image_name(b.image)))  # fmt: skip
    return said


def image_name(index: int) -> str:
    """How texts call an image; they count from 1."""
    return f"Image-{index + 1}"


def _listed(images: Sequence[int]) -> str:
    names = [image_name(image) for image in images]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
