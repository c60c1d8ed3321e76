"""`python -m univg_fast.predict --model M --images a.jpg b.jpg --question "…" [--out boxes.png] [--json]`.

Asks a model where something is: prints its reasoning, the image and the box, in pixels and in thousandths of the image.
`--batch FILE` (JSONL of {"images", "question", "id"}) writes an object a line to --out, or prints them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from univg_fast.config import Config
    from univg_fast.evaluate.items import Item
    from univg_fast.evaluate.predictions import Prediction

TASK = "predict"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
THOUGHT = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m univg_fast.predict", description=__doc__, allow_abbrev=False)
    add = top.add_argument
    add("--model", required=True, help="the folder of a model; --section.key=value as in training")
    add("--config", help="what it is asked with (default: the config.yaml of the run that it lies in)")
    add("--images", nargs="+", default=[], help="the images, in the order in which the question counts them")
    add("--question", help="what to find")
    add("--direct", action="store_true", help="ask for no reasoning")
    add("--out", type=Path, help="a picture of all images with the boxes; with --batch the file of answers")
    add("--json", action="store_true", help="print one JSON object")
    add("--batch", type=Path, help="many questions: a JSONL file")
    return top


def main(argv: list[str] | None = None) -> int:
    """0: answered. 1: a mistake in the input, or a question without an answer. 2: one in the configuration."""
    given, keys = parser().parse_known_args(argv)
    from univg_fast.config import ConfigError

    try:
        if bool(given.batch) == bool(given.images and given.question):
            raise ConfigError("expected --images and --question, or --batch")
        from univg_fast.evaluate.load import run_config

        config, _ = run_config(given.model, given.config, keys)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        return many(given, config) if given.batch else one(given, config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def one(given: argparse.Namespace, config: Config) -> int:
    if given.out and given.out.suffix.lower() not in PICTURES:
        raise ValueError(f"--out: expected a picture ({', '.join(PICTURES)}), got {given.out}")
    item = item_of("question", "--images", [str(path) for path in given.images], given.question, not given.direct)
    (found,) = predict(given.model, config, [item])
    if found["error"]:
        raise ValueError(found["error"])
    print(json.dumps(found, ensure_ascii=False) if given.json else told(found), flush=True)
    if given.out:
        draw(found, given.out, config.data.exif)
        print(given.out, file=sys.stderr)
    return 0


def many(given: argparse.Namespace, config: Config) -> int:
    """A line that is no question has a line of its own in the output, which says so."""
    items = list(questions(given.batch, not given.direct))
    failed = 0
    out = given.out.open("w", encoding="utf-8") if given.out else sys.stdout
    try:
        for found in predict(given.model, config, items):
            failed += bool(found["error"])
            out.write(json.dumps(found, ensure_ascii=False) + "\n")
            out.flush()
    finally:
        if given.out:
            out.close()
    if failed:
        print(f'error: {failed} of {len(items)} questions have no answer; "error" says why', file=sys.stderr)
    return 1 if failed else 0


def questions(path: Path, cot: bool) -> Iterator[Item]:
    from univg_fast.evaluate.items import Item, entries

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
    from univg_fast.evaluate.items import Item, Truth

    paths = tuple(str(Path(image).absolute()) for image in images)
    return Item(uid, place, TASK, paths, question, (Truth((0, 0, 1000, 1000), 0),), cot)


def predict(model: str, config: Config, items: list[Item]) -> Iterator[dict[str, Any]]:
    """What `described` says of each item, in order, batch by batch."""
    import torch

    from univg_fast.evaluate.answers import answer
    from univg_fast.evaluate.ask import form_of
    from univg_fast.evaluate.load import open_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packed, processor = open_model(model, config, device)
    for batch in answer(packed, processor, items, config.evaluate, config.rollout, form=form_of(config)):
        yield from (described(item, said) for item, said in batch)


def described(item: Item, said: Prediction) -> dict[str, Any]:
    """id, images, question, text · thought · boxes: {box in thousandths, image from 1 or null, box_px} each; those of
    the last one stand beside them, null where there is none · tokens · error."""
    from univg_fast.evaluate.overlap import box_fault
    from univg_fast.evaluate.parsers import answer_tag, named_image

    read = answer_tag(said.text, item.question, len(item.images), item.cot)
    thought = THOUGHT.search(said.text)
    boxes = []
    for box, image in zip(read.boxes, read.images, strict=True):
        at = named_image(said.text, read._replace(images=[image]), len(item.images))
        whole = not box_fault(box)
        boxes.append({
            "box": list(box) if whole else None,
            "image": None if at is None else at + 1,
            "box_px": pixels(box, said.sizes[at]) if whole and at is not None else None,
        })  # fmt: skip
    last = boxes[-1] if boxes else {"box": None, "image": None, "box_px": None}
    return {
        "id": item.uid,
        "images": list(item.images),
        "question": item.question,
        "text": said.text,
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


def draw(found: dict[str, Any], out: Path, exif: str) -> None:
    """All images side by side; a box whose image is not named is drawn on each of them."""
    from univg_fast.data.images import load_image
    from univg_fast.report.overlays import Mark, draw_boxes

    images = [load_image(path, exif) for path in found["images"]]
    marks = []
    for number, one in enumerate(found["boxes"], 1):
        at = range(len(images)) if one["image"] is None else [one["image"] - 1]
        label = str(number) if len(found["boxes"]) > 1 else ""
        marks += [Mark(i, one["box"], dashed=False, label=label) for i in at if one["box"]]
    draw_boxes(images, marks, height=360).save(out)


if __name__ == "__main__":
    sys.exit(main())
