"""The text around the images: chat template, instruction suffix, and their removal from data files."""

from __future__ import annotations

from univg_fast.structs import Record

COT_SUFFIX = (
    " First output the thinking process in <think> </think> tags"
    " and then output the bounding box in <answer> </answer> tags."
)
DIRECT_PREFIX = "This is a single image grounding task with simple reference. "
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

    With `record.cot` UniVG-R1's instruction follows the question; without it, its notice precedes the
    question. The template "short" has neither. KeyError for an unknown template.
    """
    before, after = TEMPLATES[template]
    question = record.question
    if template != "short":
        question = question + COT_SUFFIX if record.cot else DIRECT_PREFIX + question
    return before + IMAGE * len(record.images) + question + after


def response_text(record: Record) -> str:
    """The stage-1 target with the token that ends a turn. ValueError where the record has none."""
    if record.response is None:
        raise ValueError(f"{record.source}: stage 1 needs a response, and this record has none (a stage-2 file?)")
    return record.response + END


def split_instruction(text: str) -> tuple[str, bool | None]:
    """Take UniVG-R1's instruction off a question: (question, cot), cot None where the text says neither."""
    text = text.strip()
    if text.endswith(COT_SUFFIX.strip()):
        return text.removesuffix(COT_SUFFIX.strip()).rstrip(), True
    if text.startswith(DIRECT_PREFIX):
        return text.removeprefix(DIRECT_PREFIX).lstrip(), False
    return text, None


def corpus(records: list[Record]) -> list[str]:
    """Questions and stage-1 targets, the texts that `build_tokenizer` learns from."""
    return [text for record in records for text in (record.question, record.response) if text]
