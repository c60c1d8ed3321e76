"""The nouns that travel down the road: Record -> Sample -> Group -> (row). Plain frozen data, no behaviour.

Shape letters used in this package: P prompt tokens, R response tokens, G responses of a group, T tokens of a packed
row, N scored tokens, B responses, K groups, n images.
A box is (x1, y1, x2, y2), integers 0-1000 relative to its own image's width and height ("norm1000").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Target:
    """A box to be found. `image` is the 0-based index of the image that holds it; None where the file does not say."""

    box: Box
    image: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Record:
    """One entry of a data file, checked but with nothing decoded.

    `question` holds no `<image>` marks and no answer-format suffix. `response` is the stage-1 target text; it is None
    in stage-2 files. `answer_style` is the form of the boxes in an answer: univg_r1, bbox_2d or box_tokens.
    """

    uid: str
    source: str  # "path:line", and [index] where a line holds several: where a person finds it
    images: tuple[str, ...]  # absolute paths
    question: str
    targets: tuple[Target, ...] = ()  # what a right answer names, in the file's order
    response: str | None = None
    task: str = "unknown"
    cot: bool = True  # False: answer directly, without <think>
    answer_style: str = "univg_r1"
    names_images: bool = False  # an answer with one box names its image, too (with several boxes it always does)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def box(self) -> Box | None:
        """The first target's box."""
        return self.targets[0].box if self.targets else None

    @property
    def target_image(self) -> int | None:
        """The first target's image."""
        return self.targets[0].image if self.targets else None


@dataclass(frozen=True)
class BadRecord:
    """An entry that was skipped. `kind` is one of json, schema, missing, decode, aspect, count, box, too_long."""

    source: str
    kind: str
    message: str  # begins with source and uid
    uid: str | None = None  # where it is known


@dataclass(frozen=True)
class Sample:
    """A record made ready for the model: token ids and patches, all on the host."""

    record: Record
    prompt_ids: np.ndarray  # [P] int64, image placeholders expanded
    image_grid_thw: np.ndarray  # [n, 3] int64, in patches
    pixel_values: np.ndarray  # [sum(h*w), 3*p*p] float32: patches of one frame each
    sizes: tuple[tuple[int, int], ...]  # original (width, height) of each image, px
    response_ids: np.ndarray | None = None  # [R] int64, ends with <|im_end|> (stage 1)
    resized: tuple[tuple[int, int], ...] = ()  # (width, height) of each image as the model sees it, px


@dataclass(frozen=True)
class Completion:
    """One sampled response. `logprobs` [R] float32: of the model at the sampling temperature, before bans."""

    token_ids: np.ndarray  # [R] int64, includes the stop token if there is one
    logprobs: np.ndarray
    finish: str  # "stop" or "length"
    text: str = ""


@dataclass(frozen=True)
class Group:
    """The unit of the road: one prompt and its G responses (G = 1 in stage 1)."""

    sample: Sample
    responses: tuple[np.ndarray, ...]  # G arrays [R_i] int64
