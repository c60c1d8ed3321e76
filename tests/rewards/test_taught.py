"""What stage 1 teaches is what the reward wants: every record's target scores the most of every term and recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from univg_fast.config.reward_recipes import RECIPES
from univg_fast.data.prompts import prompt_text, target_text
from univg_fast.data.scan import scan
from univg_fast.rewards import TERMS, Settings, ask_for_images, score, unscorable
from univg_fast.structs import Record

REWARDS = {name: (recipe["terms"], recipe["parser"]) for name, recipe in RECIPES.items()}
REWARDS |= {name: ({name: 1.0}, "strict") for name in TERMS}
MOST = {"count": 0.0, "length": 0.0, "repetition": 0.0}
BOXES = ([100, 200, 300, 400], [500, 500, 1000, 900])
STAGE1 = "<think>It stands in Image-2.</think> <answer>(100,200),(300,400)</answer>"


def read(folder: Path, images: int, boxes: int, **row: Any) -> Record:
    """A record of a file, as a run with the options `reading` reads it."""
    reading = row.pop("reading")
    for i in range(images):
        Image.new("RGB", (40, 30)).save(folder / f"{i}.png")
    targets = [{"box": box, "image": (images - 1 + i) % images, "label": "cup"} for i, box in enumerate(BOXES[:boxes])]
    told = {"images": [f"{i}.png" for i in range(images)], "question": "Where is the cup?", "targets": targets}
    (folder / "rows.jsonl").write_text(json.dumps(told | row) + "\n")
    (record,), report = scan([folder / "rows.jsonl"], **reading)
    assert not report.bad
    return record


@pytest.mark.parametrize("boxes", [1, 2])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("cot", [True, False])
@pytest.mark.parametrize("style", ["univg_r1", "bbox_2d", "box_tokens"])
@pytest.mark.parametrize("reward", REWARDS)
def test_the_taught_answer_scores_the_most(
    tmp_path: Path, reward: str, style: str, cot: bool, images: int, boxes: int
) -> None:
    terms, parser = REWARDS[reward]
    if reward == "format_tags" or "format_tags" in terms:
        cot = True  # it counts the tags of reasoning
    reading = {"answer_style": style, "name_images": ask_for_images(terms)}
    record = read(tmp_path, images, boxes, cot=cot, reading=reading)
    assert unscorable(record, terms, parser) is None
    text = target_text(record, "It is easy to see." if cot else None)
    scores = score([text], [record], terms, Settings(parser=parser), [10])
    assert {name: float(part[0]) for name, part in scores.parts.items()} == {n: MOST.get(n, 1.0) for n in terms}, text


@pytest.mark.parametrize("style", ["univg_r1", "bbox_2d", "box_tokens"])
@pytest.mark.parametrize("reward", ["mirg_rl", "cgc", "mg_thinker"])
def test_a_stage_1_target_without_its_image_is_given_one(tmp_path: Path, reward: str, style: str) -> None:
    """A file's own responses are taught in the form that stage 2 then rewards."""
    terms, parser = REWARDS[reward]
    record = read(tmp_path, 2, 1, response=STAGE1, reading={"answer_style": style, "name_images": True})
    assert target_text(record).startswith("<think>It stands in Image-2.</think>")
    scores = score([target_text(record)], [record], terms, Settings(parser=parser))
    assert scores.total[0] == pytest.approx(len(terms))


def shapes(targets: list[dict[str, Any]]) -> dict[str, str]:
    """The ways in which stage-1 files write the boxes of an answer."""
    boxes = [tuple(target["box"]) for target in targets]
    tokens = ["<|box_start|>({},{}),({},{})<|box_end|>".format(*box) for box in boxes]
    images = [f"Image-{target.get('image', 0) + 1}" for target in targets]
    return {
        "lines": "\n".join("({},{}),({},{})".format(*box) for box in boxes),
        "tokens": "".join(tokens),
        "json": json.dumps([{"bbox_2d": box, "label": "x"} for box in boxes]),
        "where": "It is " + " and ".join(tokens),
        "mgrounding": " ".join(f"It's in {image}. {box}" for image, box in zip(images, tokens, strict=True)),
        "images": "\n".join(
            f"{image}: ({x1},{y1}),({x2},{y2})" for image, (x1, y1, x2, y2) in zip(images, boxes, strict=True)
        ),
    }


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("boxes", [1, 2])
@pytest.mark.parametrize("style", [None, "univg_r1", "bbox_2d", "box_tokens"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_s_own_answer_scores_the_most(tmp_path: Path, recipe: str, style: str, boxes: int, images: int) -> None:
    """However it is spelled, whether the file tells the images of all targets, of some, or of none."""
    terms, parser = REWARDS[recipe]
    rows = []
    for known in range(boxes + 1):
        targets: list[dict[str, Any]] = [{"box": box} for box in BOXES[:boxes]]
        for i in range(known):
            targets[i]["image"] = (images - 1 + i) % images
        row = {"images": [f"{i}.png" for i in range(images)], "question": "Where?", "targets": targets}
        for cot in (True, False):
            for said in shapes(targets).values():
                rows.append(
                    row | {"cot": cot, "response": f"<think>hm</think>\n<answer>{said}</answer>" if cot else said}
                )
    for i in range(images):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{i}.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"path": str(tmp_path / "rows.jsonl")} | ({"answer_style": style} if style else {})
    records, report = scan([entry], name_images=ask_for_images(terms))
    assert not report.bad and len(records) == len(rows)
    scored = [record for record in records if unscorable(record, terms, parser) is None]
    if "format_tags" in terms:
        scored = [record for record in scored if record.cot]  # it counts the tags of reasoning
    assert scored
    scores = score([target_text(r) for r in scored], scored, terms, Settings(parser=parser))
    for record, total in zip(scored, scores.total.tolist(), strict=True):
        assert total == len(terms), (rows[int(record.uid.split(":")[1]) - 1], record.response)
        named = re.search(r'Image-\d|"image": \d', target_text(record))
        asked = re.search(r'Image-\d|"image": \d', prompt_text(record))
        assert (named is None) == (asked is None), (prompt_text(record), record.response)


@pytest.mark.parametrize("recipe", RECIPES)
def test_mgrounding_s_own_sentence(tmp_path: Path, recipe: str) -> None:
    """Migician's prompt wants no additional words; the image is named where this is rewarded."""
    terms, parser = REWARDS[recipe]
    turns = [
        ("human", "<image><image>Find it."),
        ("gpt", "It's in the second image. <|box_start|>(1,2),(3,4)<|box_end|>"),
    ]
    row = {"images": ["0.png", "1.png"], "conversations": [{"from": who, "value": said} for who, said in turns]}
    for i in range(2):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{i}.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (record,), report = scan([tmp_path / "rows.jsonl"], name_images=ask_for_images(terms))
    named, box = ask_for_images(terms), "<|box_start|>(1,2),(3,4)<|box_end|>"
    assert record.response == ("Image-2: " if named else "") + box and record.target_image == 1
    assert ("the image and the bounding box" in prompt_text(record)) == named
    assert ("Don't generate addtional words." in prompt_text(record)) != named
    assert sum(report.rewritten[str(tmp_path / "rows.jsonl")].values()) == 1
    parts = score([record.response], [record], terms, Settings(parser=parser)).parts
    assert {name: float(part[0]) for name, part in parts.items()} == {n: float(n != "format_tags") for n in terms}


def test_the_images_of_some_targets_are_not_asked_for(tmp_path: Path) -> None:
    """Where a box must name its image, such a record cannot get the most, and says so before the first step."""
    record = read(
        tmp_path, 2, 2, targets=[{"box": BOXES[0], "image": 1}, {"box": BOXES[1]}], reading={"name_images": True}
    )
    assert "Image-" not in prompt_text(record) + target_text(record)
    for term in ("matching_gated", "matching_dual"):
        assert "tells the images of 1 of the 2 targets" in str(unscorable(record, {term: 1.0}, "strict"))
    assert unscorable(record, {"matching": 1.0}, "strict") is None


@pytest.mark.parametrize("response", [None, STAGE1])
def test_univg_r1_s_prompt_and_answer_stay_to_the_letter(tmp_path: Path, response: str | None) -> None:
    """Where no term asks for images, though the file tells them."""
    terms, parser = REWARDS["univg_r1"]
    more = {} if response is None else {"response": response}
    record = read(tmp_path, 2, 1, reading={"name_images": ask_for_images(terms)}, **more)
    assert record.targets[0].image == 1 and not record.names_images
    assert (
        "Where is the cup? First output the thinking process in <think> </think> tags and then "
        "output the bounding box in <answer> </answer> tags.<|im_end|>"
    ) in prompt_text(record)
    text = target_text(record, "a") if response is None else target_text(record)
    assert text.endswith("<answer>(100,200),(300,400)</answer>")
    assert score([text], [record], terms, Settings(parser=parser)).total[0] == 2


def test_a_response_that_names_its_image_is_asked_for_it(tmp_path: Path) -> None:
    """By itself, in a run without such rewards: prompt and target agree, and the form is right."""
    named = STAGE1.replace("<answer>", "<answer>Image-2: ")
    record = read(tmp_path, 2, 1, response=named, reading={})
    assert record.names_images and record.response == named
    assert "output the image and the bounding box in <answer> </answer> tags, as Image-1:" in prompt_text(record)
    assert score([named], [record], {"format": 1.0, "iou": 1.0}).total[0] == 2


def test_what_is_not_known_is_not_asked_for(tmp_path: Path) -> None:
    for images, boxes in ((1, [{"box": BOXES[0]}]), (2, [{"box": BOXES[0]}])):
        record = read(tmp_path, images, 1, targets=boxes, reading={"name_images": True})
        assert not record.names_images and "output the bounding box in <answer>" in prompt_text(record)


def test_a_parser_of_one_box_is_not_asked_for_more(tmp_path: Path) -> None:
    """UniVG-R1's reads no image and one box: a reward of both would be 0 for the right answer, and says so before."""
    two = read(tmp_path, 2, 2, reading={"name_images": True})
    one = read(tmp_path, 2, 1, reading={"name_images": True})
    alone = read(tmp_path, 1, 1, reading={"name_images": True})
    for term in ("image", "image_set", "matching_gated", "matching_dual"):
        assert "set rewards.parser=strict" in str(unscorable(one, {term: 1.0}, "univg_r1"))
        assert unscorable(alone, {term: 1.0}, "univg_r1") is None
    for term in ("matching", "f1", "count"):
        assert "right answer here has 2 of 2 images" in str(unscorable(two, {term: 1.0}, "univg_r1"))
        assert unscorable(one, {term: 1.0}, "univg_r1") is None
