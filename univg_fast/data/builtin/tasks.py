"""One function per kind of task: from a random stream to images, a question and its exact answer.

The kinds are MIG-Bench's. Every function keeps two promises, which the tests check from the pixels: the
question has one answer, and the box is the tight bounding box of what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from univg_fast.structs import Box

from .scene import Scene
from .shapes import COLOURS, Object

# Two regions of a picture count as different where they differ by this much, mean of all values (0-255).
DISTINCT = 6.0


@dataclass(frozen=True)
class Draft:
    """A sample before it is written. `think` is the reasoning of its stage-1 answer."""

    images: list[np.ndarray]  # [H, W, 3] uint8
    question: str
    think: str
    box: Box
    target_image: int  # 0-based


def group_grounding(scene: Scene) -> Draft:
    """Which image holds the described object, and where?"""
    images = scene.backgrounds(scene.between(*scene.config.images_per_sample))
    where = scene.between(0, len(images) - 1)
    target = scene.place(scene.object(), scene.full())
    held = []
    for i, image in enumerate(images):
        mine = [target] if i == where else []
        held.append(mine + scene.distract(target, mine, scene.full()))
        scene.paint(image, held[-1])
    think = _inventory(scene, held, target, where + 1)
    return Draft(images, f"Find the {target.name}.", think, scene.box(target), where)


def refer_grounding(scene: Scene) -> Draft:
    """The one object of image 1, found among others in image 2, at another place and of another size."""
    first, second = scene.backgrounds(2)
    shown = scene.place(scene.object(), scene.full())
    target = scene.place(replace(shown, side=scene.size()), scene.full())
    others = [target, *scene.distract(target, [target], scene.full())]
    scene.paint(first, [shown])
    scene.paint(second, others)
    think = _inventory(scene, [[shown], others], target, 2)
    return Draft([first, second], "Find the object of image 1 in image 2.", think, scene.box(target), 1)


def static_diff(scene: Scene) -> Draft:
    """The same picture twice, but for one object that was added, removed or given another colour."""
    (first,) = scene.backgrounds(1)
    second = first.copy()
    target = scene.place(scene.object(), scene.full())
    others = scene.distract(target, [target], scene.full())
    edit = ("added", "removed", "recoloured")[scene.between(0, 2)]
    if edit == "added":
        before, after, think = others, [*others, target], f"The {target.name} is new in image 2."
    elif edit == "removed":
        before, after, think = [*others, target], others, f"The {target.name} is gone in image 2."
    else:
        now = _recolour(scene, target)
        before, after = [*others, target], [*others, now]
        think = f"The {target.name} is {now.colour} in image 2."
    scene.paint(first, before)
    scene.paint(second, after)
    return Draft([first, second], "Find the difference in image 2.", think, scene.box(target), 1)


def region(scene: Scene) -> Draft:
    """A part of image 1 is cut out as image 2; where does it come from?"""
    part = scene.place(Object("", "", 0, 0, scene.size()), scene.full())
    for _ in range(8):
        (image,) = scene.backgrounds(1)
        scene.paint(image, scene.distract(scene.object(), [], scene.full()))
        if _difference(scene, image, part) > DISTINCT:
            break
    else:  # every part looks like its neighbours, as in a black sky: put an object there
        (image,) = scene.backgrounds(1)
        scene.paint(image, [replace(scene.object(), x=part.x, y=part.y, side=part.side)])
    cut = _cut(scene, image, part)
    return Draft([image, cut], "Find image 2 in image 1.", "Image 2 is a part of image 1.", scene.box(part), 0)


def object_tracking(scene: Scene) -> Draft:
    """A camera moves over a scene: an object given by its box in image 1, found in the last image."""
    config = scene.config
    number = scene.between(*config.images_per_sample)
    (world,) = scene.worlds(1)
    corners = [(scene.between(0, config.max_shift), scene.between(0, config.max_shift)) for _ in range(number)]
    while corners[-1] == corners[0]:  # or the given box would be the answer
        corners[-1] = (scene.between(0, config.max_shift), scene.between(0, config.max_shift))
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    seen_by_all = (max(xs), max(ys), min(xs) + config.lattice, min(ys) + config.lattice)
    target = scene.place(scene.object(), seen_by_all)
    cells = config.lattice + config.max_shift
    items = [target, *scene.distract(target, [target], (0, 0, cells, cells))]
    images = [scene.view(world, x, y) for x, y in corners]
    for image, (x, y) in zip(images, corners, strict=True):
        scene.paint(image, [replace(item, x=item.x - x, y=item.y - y) for item in items])
    x1, y1, x2, y2 = scene.box(target, *corners[0])
    question = f"Find the object at ({x1},{y1}),({x2},{y2}) of image 1 in image {number}."
    think = f"The {target.name} is in image {number}."
    return Draft(images, question, think, scene.box(target, *corners[-1]), number - 1)


def _inventory(scene: Scene, held: list[list[Object]], target: Object, image: int) -> str:
    """What each image holds, in reading order, then the target: on objects first, then on images."""
    seen = [
        scene.whereabouts(item, i)
        for i, items in enumerate(held, start=1)
        for item in sorted(items, key=lambda item: (item.y, item.x))
    ]
    return "; ".join(seen) + f". Target: {scene.whereabouts(target, image)}."


def _recolour(scene: Scene, item: Object) -> Object:
    colours = [colour for colour in list(COLOURS)[: scene.config.num_colours] if colour != item.colour]
    return replace(item, colour=colours[scene.between(0, len(colours) - 1)])


def _cut(scene: Scene, image: np.ndarray, part: Object) -> np.ndarray:
    cell = scene.config.cell
    return image[part.y * cell : (part.y + part.side) * cell, part.x * cell : (part.x + part.side) * cell].copy()


def _difference(scene: Scene, image: np.ndarray, part: Object) -> float:
    """How far the part is from the part of its size, elsewhere on the lattice, that is most like it."""
    cut = _cut(scene, image, part).astype(np.int16)
    places = [(x, y) for x, y in scene.places(part.side, [], scene.full()) if (x, y) != (part.x, part.y)]
    cuts = [_cut(scene, image, replace(part, x=x, y=y)) for x, y in places]
    return min((float(np.abs(other - cut).mean()) for other in cuts), default=np.inf)


MAKERS: dict[str, Callable[[Scene], Draft]] = {
    "group_grounding": group_grounding,
    "refer_grounding": refer_grounding,
    "static_diff": static_diff,
    "region": region,
    "object_tracking": object_tracking,
}
