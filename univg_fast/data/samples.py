"""A record to the arrays that the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from univg_fast.structs import Record, Sample

from .errors import SampleError
from .images import load_images
from .prompts import END, TEMPLATES, prompt_text, response_text


@dataclass(frozen=True)
class Processor:
    """A tokenizer and an image processor (of transformers), with the numbers that join them."""

    tokenizer: Any
    image_processor: Any  # Qwen2VLImageProcessorPil
    image_token_id: int
    end_token_id: int  # <|im_end|>: ends every response
    merge_size: int
    prompt_template: str = "qwen2_vl"
    max_length: int = 8192  # tokens of prompt and response together


def make_processor(
    tokenizer: Any,
    *,
    min_pixels: int = 3136,
    max_pixels: int = 401408,
    patch_size: int = 14,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
    prompt_template: str = "qwen2_vl",
    max_length: int = 8192,
) -> Processor:
    """A processor for the Qwen2-VL family; pixels are bounds on one image's area after resizing."""
    # torchvision is not needed: the PIL backend, imported directly, does not even warn
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    if prompt_template not in TEMPLATES:
        raise ValueError(f"data.prompt_template: expected one of {', '.join(TEMPLATES)}, got {prompt_template!r}")
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=temporal_patch_size,
    )
    ids = tokenizer.convert_tokens_to_ids(["<|image_pad|>", END])
    if None in ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"the tokenizer lacks <|image_pad|> or {END}: expected one of the Qwen2-VL family")
    return Processor(tokenizer, image_processor, ids[0], ids[1], merge_size, prompt_template, max_length)


def make_sample(record: Record, processor: Processor, with_response: bool) -> Sample:
    """Decode, patch and tokenize. SampleError of kind decode, aspect, count, schema or too_long."""
    images = load_images(record)
    try:
        patches = processor.image_processor(images=images, return_tensors="np")
    except ValueError as error:  # the sides' ratio, if the record did not come through the scan
        raise SampleError(record.source, "aspect", str(error)) from error
    grid = np.asarray(patches["image_grid_thw"], np.int64)
    prompt = _expand(record, grid, processor)
    response = _response(record, processor) if with_response else None
    length = len(prompt) + (0 if response is None else len(response))
    if length > processor.max_length:
        problem = f"{length} tokens, more than data.max_length={processor.max_length}"
        raise SampleError(record.source, "too_long", problem)
    return Sample(
        record=record,
        prompt_ids=prompt,
        image_grid_thw=grid,
        pixel_values=np.asarray(patches["pixel_values"], np.float32),
        sizes=tuple(image.size for image in images),
        response_ids=response,
    )


def _expand(record: Record, grid: np.ndarray, processor: Processor) -> np.ndarray:
    """[P] int64: the prompt with each image's placeholder repeated once per merged patch."""
    ids = _encode(prompt_text(record, processor.prompt_template), processor)
    places = np.flatnonzero(ids == processor.image_token_id)
    if len(places) != len(grid):
        problem = f"expected {len(grid)} image placeholders, got {len(places)}: the question holds its own"
        raise SampleError(record.source, "count", problem)
    repeats = np.ones(len(ids), np.int64)
    repeats[places] = grid.prod(1) // processor.merge_size**2
    return np.repeat(ids, repeats)


def _response(record: Record, processor: Processor) -> np.ndarray:
    if record.response is None:
        problem = "stage 1 needs a response; this record has none (a stage-2 file?)"
        raise SampleError(record.source, "schema", problem)
    return _encode(response_text(record), processor)


def _encode(text: str, processor: Processor) -> np.ndarray:
    return np.asarray(processor.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)
