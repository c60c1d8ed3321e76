"""A record to the arrays that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from univg_fast.packing.plan import GroupSize
from univg_fast.structs import Record, Sample, Target

from .coordinates import SYSTEMS, Size, smart_resize
from .errors import Refused, SampleError
from .images import Known, load_images
from .modeltext import to_model
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
    coordinates: str = "norm1000"  # what the model family's box numbers mean
    exif: str = "ignore"  # or "apply": turn images as their EXIF says


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
    coordinates: str = "norm1000",
    exif: str = "ignore",
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> Processor:
    """A processor for the Qwen2-VL family; pixels are bounds on one image's area after resizing.

    `coordinates`: "norm1000", or "resized" for a family whose text counts pixels of the resized image (Qwen2.5-VL).
    `image_mean`, `image_std`: of each channel; None: Qwen2-VL's.
    """
    # torchvision is not needed: the PIL backend, imported directly, does not even warn
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    if prompt_template not in TEMPLATES:
        raise ValueError(f"data.prompt_template: expected one of {', '.join(TEMPLATES)}, got {prompt_template!r}")
    if coordinates not in SYSTEMS:
        raise ValueError(f"coordinates: expected one of {', '.join(SYSTEMS)}, got {coordinates!r}")
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=temporal_patch_size,
        **({} if image_mean is None else {"image_mean": list(image_mean)}),
        **({} if image_std is None else {"image_std": list(image_std)}),
    )
    ids = tokenizer.convert_tokens_to_ids(["<|image_pad|>", END])
    if None in ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"the tokenizer lacks <|image_pad|> or {END}: expected one of the Qwen2-VL family")
    return Processor(
        tokenizer, image_processor, ids[0], ids[1], merge_size, prompt_template, max_length, coordinates, exif
    )


def make_sample(record: Record, processor: Processor, with_response: bool) -> Sample:
    """Decode, patch and tokenize. SampleError of kind decode, aspect, count, schema or too_long.

    The sizes that boxes in pixels refer to are those of the patches made here, whatever made them so.
    """
    images = load_images(record, processor.exif)
    try:
        pixels, grid = _patches(images, processor.image_processor)
    except ValueError as error:  # the sides' ratio, if the record did not come through the scan
        raise SampleError(record, "aspect", str(error)) from error
    patch = processor.image_processor.patch_size
    frame = _Frame(processor, [image.size for image in images], [(int(w) * patch, int(h) * patch) for _, h, w in grid])
    prompt, response = _tokens(record, frame, with_response)
    return Sample(
        record=record,
        prompt_ids=prompt,
        image_grid_thw=grid,
        pixel_values=pixels,
        sizes=tuple(frame.sizes),
        response_ids=response,
        resized=tuple(frame.resized),
    )


def measure(record: Record, processor: Processor, with_response: bool, headers: Known) -> GroupSize:
    """The size of the sample that `make_sample` will make, without decoding: images' headers and tokens only.

    SampleError as there, but for what only a decoder finds; and of kind missing.
    """
    bounds, patch = processor.image_processor.size, processor.image_processor.patch_size
    sizes: list[Size] = []
    for path in record.images:
        header = headers[path]
        if isinstance(header, Refused):
            raise SampleError(record, header.kind, header.problem)
        sizes.append(header.shown(processor.exif))
    low, high = int(bounds["shortest_edge"]), int(bounds["longest_edge"])
    resized = [smart_resize(size, patch * processor.merge_size, low, high) for size in sizes]
    prompt, response = _tokens(record, _Frame(processor, sizes, resized), with_response)
    patches = sum(width * height for width, height in resized) // patch**2
    return GroupSize(len(prompt), () if response is None else (len(response),), patches)


def _patches(images: list[Any], image_processor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Patches [sum(h*w), 3*p*p] float32, of one frame (those of a still image are equal), and grids [n, 3] int64."""
    values = 3 * image_processor.patch_size**2
    if not images:
        return np.zeros((0, values), np.float32), np.zeros((0, 3), np.int64)
    made = image_processor(images=images, return_tensors="np")
    frames = np.asarray(made["pixel_values"], np.float32)
    frames = frames.reshape(len(frames), 3, image_processor.temporal_patch_size, -1)
    return frames[:, :, 0].reshape(len(frames), values), np.asarray(made["image_grid_thw"], np.int64)


@dataclass(frozen=True)
class _Frame:
    """How a record's texts become the model's: its processor, and the sizes of the images, as shown (turned, where EXIF
    is applied) and as resized."""

    processor: Processor
    sizes: list[Size]
    resized: list[Size]

    def encode(self, text: str, only_tokens: bool, targets: Sequence[Target] = ()) -> np.ndarray:
        text = to_model(text, self.processor.coordinates, self.sizes, self.resized, only_tokens, targets)
        return np.asarray(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)


def _tokens(record: Record, frame: _Frame, with_response: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids of the prompt [P], its placeholders repeated, and of the response [R]. SampleError beyond data.max_length."""
    prompt = _expand(record, frame)
    response = _response(record, frame) if with_response else None
    length, limit = len(prompt) + (0 if response is None else len(response)), frame.processor.max_length
    if length > limit:
        raise SampleError(record, "too_long", f"{length} tokens, more than data.max_length={limit}")
    return prompt, response


def _expand(record: Record, frame: _Frame) -> np.ndarray:
    """[P] int64: the prompt with each image's placeholder repeated once per merged patch."""
    processor = frame.processor
    ids = frame.encode(prompt_text(record, processor.prompt_template), only_tokens=True)
    places = np.flatnonzero(ids == processor.image_token_id)
    if len(places) != len(frame.resized):
        problem = f"expected {len(frame.resized)} image placeholders, got {len(places)}: the question holds its own"
        raise SampleError(record, "count", problem)
    repeats = np.ones(len(ids), np.int64)
    factor = processor.image_processor.patch_size * processor.merge_size
    repeats[places] = [width * height // factor**2 for width, height in frame.resized]
    return np.repeat(ids, repeats)


def _response(record: Record, frame: _Frame) -> np.ndarray:
    if record.response is None:
        problem = "stage 1 needs a response; this record has none (a stage-2 file?)"
        raise SampleError(record, "schema", problem)
    return frame.encode(response_text(record), only_tokens=False, targets=record.targets)
