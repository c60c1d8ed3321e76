"""The text around the images: chat template, the instruction for each style of answer, and taking it off again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from univg_fast.rewards import parse
from univg_fast.structs import Record, Target

THINK = " First output the thinking process in <think> </think> tags and then output "
COT_SUFFIX = THINK + "the bounding box in <answer> </answer> tags."
DIRECT_PREFIX = "This is a single image grounding task with simple reference. "
LINES = "all bounding boxes{}, one on a line, as Image-1: (x1,y1),(x2,y2)."
OBJECTS = (
    'a JSON list{} with one object for each box: {{"bbox_2d": [x1, y1, x2, y2], "label": "name", "image": 1}},'
    " where images count from 1."
)
TAGGED = " in <answer> </answer> tags"
TOKENS = " Format:<|box_start|>(x1,y1),(x2,y2)<|box_end|>. Don't generate addtional words."  # Migician's, to the letter
TOKEN_LINES = "all bounding boxes{}, one on a line, as Image-1: <|box_start|>(x1,y1),(x2,y2)<|box_end|>."
ONE_LINE = "the image and the bounding box{}, as Image-1: (x1,y1),(x2,y2)."
ONE_TOKEN_LINE = "the image and the bounding box{}, as Image-1: <|box_start|>(x1,y1),(x2,y2)<|box_end|>."


def _asking(what: str) -> tuple[str, str]:
    return THINK + what.format(TAGGED), " Output " + what.format("")


# (style, what is wanted: one box, one and its image, all boxes) -> what follows the question: with reasoning, without.
INSTRUCTIONS = {
    ("univg_r1", "box"): (COT_SUFFIX, ""),
    ("univg_r1", "image"): _asking(ONE_LINE),
    ("univg_r1", "all"): _asking(LINES),
    ("bbox_2d", "box"): _asking(OBJECTS),
    ("bbox_2d", "image"): _asking(OBJECTS),
    ("bbox_2d", "all"): _asking(OBJECTS),
    ("box_tokens", "box"): (
        THINK + "the bounding box in <answer> </answer> tags, as <|box_start|>(x1,y1),(x2,y2)<|box_end|>.",
        TOKENS,
    ),
    ("box_tokens", "image"): _asking(ONE_TOKEN_LINE),
    ("box_tokens", "all"): _asking(TOKEN_LINES),
}
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
END = "<|im_end|>"
TEMPLATES = {
    "qwen2_vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    # For models trained from scratch on a CPU: no roles and no instruction, some hundred tokens fewer.
    "short": ("<|im_start|>", "<|im_end|><|im_start|>"),
}


def prompt_text(record: Record, template: str = "qwen2_vl") -> str:
    """The prompt up to where the model speaks: all images first, one `<|image_pad|>` each, then the question.

    The instruction follows. Without `record.cot` it asks for no reasoning, and UniVG-R1's notice precedes a question
    for one box of one image in its style. The template "short" has none of them. KeyError for an unknown template.
    """
    before, after = TEMPLATES[template]
    question = record.question
    if template != "short":
        alone = len(record.images) == 1 and _wanted(record) == "box"
        notice = DIRECT_PREFIX if alone and record.answer_style == "univg_r1" and not record.cot else ""
        question = notice + question + instruction(record)
    return before + IMAGE * len(record.images) + question + after


def instruction(record: Record) -> str:
    """What follows the question: which form answer and reasoning shall have."""
    thinking, direct = INSTRUCTIONS[record.answer_style, _wanted(record)]
    return thinking if record.cot else direct


def _wanted(record: Record) -> str:
    if len(record.targets) > 1:
        return "all"
    return "image" if record.names_images else "box"


def response_text(record: Record) -> str:
    """The stage-1 target with the token that ends a turn. ValueError where the record has none."""
    if record.response is None:
        raise ValueError(f"{record.source}: stage 1 needs a response, and this record has none (a stage-2 file?)")
    return record.response + END


def answer_text(targets: Sequence[Target], style: str = "univg_r1", names_images: bool = False) -> str:
    """The right answer in a style: boxes 0-1000, images counted from 1, no <answer>. KeyError for another style.

    The image of a single box is named where `names_images`, and by JSON.
    """
    if style == "bbox_2d":
        return json.dumps([_as_object(target) for target in targets], ensure_ascii=False)
    before, after = {"univg_r1": ("", ""), "box_tokens": ("<|box_start|>", "<|box_end|>")}[style]
    lines = []
    for target in targets:
        x1, y1, x2, y2 = target.box
        naming = target.image is not None and (names_images or len(targets) > 1)
        named = f"Image-{(target.image or 0) + 1}: " if naming else ""
        lines.append(f"{named}{before}({x1},{y1}),({x2},{y2}){after}")
    return "\n".join(lines)


def target_text(record: Record, think: str | None = None) -> str:
    """The text to learn: the record's response; or, with `think` or where it has none, one made from its targets."""
    if record.response is not None and think is None:
        return record.response
    answer = answer_text(record.targets, record.answer_style, record.names_images)
    reasoning = "" if think is None else f"<think>{think}</think>\n"
    return f"{reasoning}<answer>{answer}</answer>" if record.cot else answer


def with_answer(response: str, answer: str) -> str:
    """A response with another answer in its <answer>; without tags the answer is all of it."""
    start, end = response.find("<answer>") + len("<answer>"), response.rfind("</answer>")
    return response[:start] + answer + response[end:] if len("<answer>") <= start <= end else answer


def naming_images(record: Record, asked: bool) -> Record:
    """The record as one whose answers name images, where it has several and tells those of its targets; else as it is.

    That is where it is `asked` for (by the rewards), and where its response does so by itself. A response that does not
    name them gets the answer that does.
    """
    if len(record.images) < 2 or not record.targets or any(target.image is None for target in record.targets):
        return record
    response = record.response
    if response is not None and (asked or "Image-" in response[max(0, response.rfind("<answer>")) :]):
        boxes = parse(response, record.answer_style, "strict", record.cot).boxes
        named = bool(boxes) and all(box.image is not None for box in boxes)
        if asked and not named:
            response = with_answer(response, answer_text(record.targets, record.answer_style, names_images=True))
        asked = asked or named
    return replace(record, response=response, names_images=True) if asked else record


def split_instruction(text: str) -> tuple[str, bool | None]:
    """Take an instruction off a question: (question, cot), cot None where the text says neither."""
    text = text.strip()
    for thinking, direct in INSTRUCTIONS.values():
        for suffix, cot in ((thinking.strip(), True), (direct.strip(), False)):
            if suffix and text.endswith(suffix):
                return text.removesuffix(suffix).rstrip(), cot
    if text.startswith(DIRECT_PREFIX):
        return text.removeprefix(DIRECT_PREFIX).lstrip(), False
    return text, None


def corpus(records: Sequence[Record]) -> list[str]:
    """Questions and stage-1 targets, the texts that `build_tokenizer` learns from."""
    return [text for record in records for text in (record.question, record.response) if text]


def _as_object(target: Target) -> dict[str, object]:
    named = {"label": target.label, "image": None if target.image is None else target.image + 1}
    return {"bbox_2d": list(target.box)} | {key: value for key, value in named.items() if value is not None}
