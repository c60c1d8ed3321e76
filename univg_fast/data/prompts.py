"""The text around the images: chat template, the instruction for each style of answer, and taking it off again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from univg_fast.structs import Record, Target

from .answers import only_boxes

THINK = " First output the thinking process in <think> </think> tags and then output "
COT_SUFFIX = THINK + "the bounding box in <answer> </answer> tags."
DIRECT_PREFIX = "This is a single image grounding task with simple reference. "
LINES = "all bounding boxes{}, one on a line, as "
NAMED, PLAIN, TOKEN = "Image-1: ", "(x1,y1),(x2,y2).", "<|box_start|>(x1,y1),(x2,y2)<|box_end|>."
TAGGED = " in <answer> </answer> tags"
# as the benchmarks' scripts ask Qwen2-VL and Migician, to the letter: no space before it
TOKENS = "Format:<|box_start|>(x1,y1),(x2,y2)<|box_end|>. Don't generate addtional words."
ONE_LINE = "the image and the bounding box{}, as Image-1: "


def _asking(what: str) -> tuple[str, str]:
    return THINK + what.format(TAGGED), " Output " + what.format("")


def _objects(label: bool, image: bool) -> tuple[str, str]:
    fields = ["[x1, y1, x2, y2]", *(['"label": "name"'] if label else []), *(['"image": 1'] if image else [])]
    counted = ", where images count from 1." if image else "."
    return _asking('a JSON list{} with one object for each box: {{"bbox_2d": ' + ", ".join(fields) + "}}" + counted)


# (style, what is wanted: one box, one and its image, all boxes, all and their images) -> what follows the question:
# with reasoning, without. Of JSON: (style, labels are wanted, images are wanted).
INSTRUCTIONS = {
    ("univg_r1", "box"): (COT_SUFFIX, ""),
    ("univg_r1", "image"): _asking(ONE_LINE + PLAIN),
    ("univg_r1", "boxes"): _asking(LINES + PLAIN),
    ("univg_r1", "all"): _asking(LINES + NAMED + PLAIN),
    ("box_tokens", "box"): (THINK + "the bounding box in <answer> </answer> tags, as " + TOKEN, TOKENS),
    ("box_tokens", "image"): _asking(ONE_LINE + TOKEN),
    ("box_tokens", "boxes"): _asking(LINES + TOKEN),
    ("box_tokens", "all"): _asking(LINES + NAMED + TOKEN),
} | {("bbox_2d", label, image): _objects(label, image) for label in (True, False) for image in (True, False)}
SENTENCE = (THINK + "the answer in <answer> </answer> tags.", "")  # what is learned is no list of boxes
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
        asked = _instruction(record)
        alone = len(record.images) == 1 and asked == INSTRUCTIONS["univg_r1", "box"]
        question = (DIRECT_PREFIX if alone and not record.cot else "") + question + asked[0 if record.cot else 1]
    return before + IMAGE * len(record.images) + question + after


def instruction(record: Record) -> str:
    """What follows the question: which form answer and reasoning shall have."""
    return _instruction(record)[0 if record.cot else 1]


def _instruction(record: Record) -> tuple[str, str]:
    if record.response is not None and not (record.targets and only_boxes(record.response)):
        return SENTENCE
    named, several = shows_images(record), len(record.targets) > 1
    if record.answer_style == "bbox_2d":
        return INSTRUCTIONS["bbox_2d", any(target.label is not None for target in record.targets), named]
    wanted = ("all" if named else "boxes") if several else ("image" if named else "box")
    return INSTRUCTIONS[record.answer_style, wanted]


def knows_images(record: Record) -> bool:
    """Whether there is an image to be named: the record has several, and tells those of all its targets."""
    told = bool(record.targets) and all(target.image is not None for target in record.targets)
    return told and len(record.images) > 1


def shows_images(record: Record) -> bool:
    """Whether the answer names the images of its boxes: in JSON and of several boxes wherever they are known."""
    always = record.answer_style == "bbox_2d" or len(record.targets) > 1
    return knows_images(record) and (always or record.names_images)


def response_text(record: Record) -> str:
    """The stage-1 target with the token that ends a turn. ValueError where the record has none."""
    if record.response is None:
        raise ValueError(f"{record.source}: stage 1 needs a response, and this record has none (a stage-2 file?)")
    return record.response + END


def answer_text(targets: Sequence[Target], style: str = "univg_r1", names_images: bool = False) -> str:
    """Boxes in a style: 0-1000, images counted from 1, no <answer>. KeyError for another style.

    Images that targets tell are named; the image of a single box where `names_images`, and by JSON.
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


def right_answer(record: Record) -> str:
    """The right answer in the form that the prompt asks for, without tags."""
    if shows_images(record):
        return answer_text(record.targets, record.answer_style, names_images=True)
    return answer_text([replace(target, image=None) for target in record.targets], record.answer_style)


def target_text(record: Record, think: str | None = None) -> str:
    """The text to learn: the record's response; or, with `think` or where it has none, one made from its targets."""
    if record.response is not None and think is None:
        return record.response
    answer = right_answer(record)
    reasoning = "" if think is None else f"<think>{think}</think>\n"
    return f"{reasoning}<answer>{answer}</answer>" if record.cot else answer


def split_instruction(text: str) -> tuple[str, bool | None]:
    """Take an instruction off a question: (question, cot), cot None where the text says neither."""
    text = text.strip()
    for thinking, direct in (*INSTRUCTIONS.values(), SENTENCE):
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
