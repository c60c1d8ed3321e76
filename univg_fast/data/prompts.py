"""The text around the images: chat template, the instruction for each style of answer, and taking it off again."""

from __future__ import annotations

import json
from collections.abc import Sequence

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
# (style, several boxes wanted) -> what follows the question: with reasoning, without it.
INSTRUCTIONS = {
    ("univg_r1", False): (COT_SUFFIX, ""),
    ("univg_r1", True): (THINK + LINES.format(TAGGED), " Output " + LINES.format("")),
    ("bbox_2d", False): (THINK + OBJECTS.format(TAGGED), " Output " + OBJECTS.format("")),
    ("bbox_2d", True): (THINK + OBJECTS.format(TAGGED), " Output " + OBJECTS.format("")),
    ("box_tokens", False): (
        THINK + "the bounding box in <answer> </answer> tags, as <|box_start|>(x1,y1),(x2,y2)<|box_end|>.",
        TOKENS,
    ),
    ("box_tokens", True): (THINK + TOKEN_LINES.format(TAGGED), " Output " + TOKEN_LINES.format("")),
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

    The instruction of the record's `answer_style` follows; where it has several targets, that for all boxes at once.
    Without `record.cot` it asks for no reasoning, and UniVG-R1's notice precedes a question for one box in that style.
    The template "short" has none of them. KeyError for an unknown template.
    """
    before, after = TEMPLATES[template]
    question = record.question
    if template != "short":
        several = len(record.targets) > 1
        thinking, direct = INSTRUCTIONS[record.answer_style, several]
        notice = DIRECT_PREFIX if record.answer_style == "univg_r1" and not several and not record.cot else ""
        question = notice + question + (thinking if record.cot else direct)
    return before + IMAGE * len(record.images) + question + after


def response_text(record: Record) -> str:
    """The stage-1 target with the token that ends a turn. ValueError where the record has none."""
    if record.response is None:
        raise ValueError(f"{record.source}: stage 1 needs a response, and this record has none (a stage-2 file?)")
    return record.response + END


def answer_text(targets: Sequence[Target], style: str = "univg_r1") -> str:
    """The right answer in a style: boxes 0-1000, images counted from 1, no <answer>. KeyError for another style."""
    if style == "bbox_2d":
        return json.dumps([_as_object(target) for target in targets], ensure_ascii=False)
    before, after = {"univg_r1": ("", ""), "box_tokens": ("<|box_start|>", "<|box_end|>")}[style]
    lines = []
    for target in targets:
        x1, y1, x2, y2 = target.box
        named = f"Image-{target.image + 1}: " if len(targets) > 1 and target.image is not None else ""
        lines.append(f"{named}{before}({x1},{y1}),({x2},{y2}){after}")
    return "\n".join(lines)


def target_text(record: Record, think: str | None = None) -> str:
    """The text to learn: the record's response; or, with `think` or where it has none, one made from its targets."""
    if record.response is not None and think is None:
        return record.response
    answer = answer_text(record.targets, record.answer_style)
    reasoning = "" if think is None else f"<think>{think}</think>\n"
    return f"{reasoning}<answer>{answer}</answer>" if record.cot else answer


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
