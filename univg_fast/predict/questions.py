"""Questions to a model, and what its answers say: reasoning, images, boxes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from univg_fast.config import Config
from univg_fast.data.images import load_image
from univg_fast.evaluate.answers import answer
from univg_fast.evaluate.ask import form_of
from univg_fast.evaluate.items import Item, Truth, entries
from univg_fast.evaluate.load import open_model
from univg_fast.evaluate.overlap import box_fault
from univg_fast.evaluate.parsers import PARSERS, named_image
from univg_fast.evaluate.predictions import Prediction
from univg_fast.evaluate.units import read_answer, text_of
from univg_fast.report.overlays import Mark, draw_boxes

TASK = "predict"
THOUGHT = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
Ask = Callable[[Sequence[Item]], Iterator[dict[str, Any]]]


def asker(model: str, config: Config) -> Ask:
    """Open a model: items -> what `described` says of each, in order, batch by batch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packed, processor = open_model(model, config, device)

    def ask(items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        for batch in answer(packed, processor, items, config.evaluate, config.rollout, form=form_of(config)):
            yield from (described(item, said) for item, said in batch)

    return ask


def questions(path: Path, cot: bool) -> Iterator[Item]:
    for number, (place, row, wrong) in enumerate(entries(path)):
        row = row or {}
        given, question, uid = row.get("images", row.get("image")), row.get("question"), str(row.get("id", number))
        listed = given if isinstance(given, list) else [given]
        images = [str(path.parent / image) for image in listed if isinstance(image, str)]
        if len(images) < max(1, len(listed)):
            wrong = wrong or "images: expected a path, or several"
        elif not isinstance(question, str) or not question:
            wrong = wrong or "question: expected a text"
        yield Item(uid, place, TASK, problem=wrong) if wrong else item_of(uid, place, images, str(question), cot)


def item_of(uid: str, place: str, images: list[str], question: str, cot: bool) -> Item:
    """Its truth says only that there is an image to be named."""
    paths = tuple(str(Path(image).absolute()) for image in images)
    return Item(uid, place, TASK, paths, question, (Truth((0, 0, 1000, 1000), 0),), cot)


def described(item: Item, said: Prediction) -> dict[str, Any]:
    """id, images, question, text · thought · boxes: {box in thousandths, image from 1 or null, box_px} each; those of
    the last one stand beside them, null where there is none · tokens · error."""
    read, _ = read_answer(said, item, PARSERS["answer_tag"])
    text = text_of(said, item)
    thought = THOUGHT.search(text)
    boxes = []
    for box, image in zip(read.boxes, read.images, strict=True):
        at = named_image(said.text, read._replace(images=[image]), len(item.images))
        whole = not box_fault(box)
        boxes.append({
            "box": [round(value, 1) for value in box] if whole else None,
            "image": None if at is None else at + 1,
            "box_px": pixels(box, said.sizes[at]) if whole and at is not None else None,
        })  # fmt: skip
    last = boxes[-1] if boxes else {"box": None, "image": None, "box_px": None}
    return {
        "id": item.uid,
        "images": list(item.images),
        "question": item.question,
        "text": text,
        "thought": thought[1].strip() if thought else None,
        **last,
        "boxes": boxes,
        "tokens": said.tokens,
        "error": said.error,
    }


def pixels(box: tuple[float, ...], size: tuple[int, int]) -> list[int]:
    return [round(value * side / 1000) for value, side in zip(box, size * 2, strict=True)]


def told(found: dict[str, Any]) -> str:
    """For a person."""
    lines = [found["thought"]] if found["thought"] else []
    for one in found["boxes"]:
        place = f"image {one['image']}" if one["image"] else "no image named"
        if one["box"] is None:
            lines.append(f"{place}: the answer's box has no area")
        else:
            measured = f", {one['box_px']} px" if one["box_px"] else ""
            lines.append(f"{place}: {one['box']} of 1000{measured}")
    if not found["boxes"]:
        lines.append(f"no box in the answer: {found['text']!r}")
    return "\n".join(lines)


def sheet(found: dict[str, Any], exif: str = "ignore") -> Image.Image:
    """All images side by side; a box whose image is not named is drawn on each of them."""
    images = [load_image(path, exif) for path in found["images"]]
    marks = []
    for number, one in enumerate(found["boxes"], 1):
        at = range(len(images)) if one["image"] is None else [one["image"] - 1]
        label = str(number) if len(found["boxes"]) > 1 else ""
        marks += [Mark(i, one["box"], dashed=False, label=label) for i in at if one["box"]]
    return draw_boxes(images, marks, height=360)
