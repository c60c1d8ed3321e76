"""Every record and image of one use: all images decoded, all tokens counted, what is wrong told by its kind."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np

from univg_fast.data.coordinates import Size, smart_resize
from univg_fast.data.errors import DecodeError, SampleError
from univg_fast.data.images import REMEMBERED, UNREADABLE, load_image
from univg_fast.data.modeltext import to_model
from univg_fast.data.prompts import prompt_text, response_text
from univg_fast.data.samples import Processor
from univg_fast.data.scan import Report
from univg_fast.structs import BadRecord, Record

CHUNK = 128  # records whose images are decoded together
AHEAD = 2  # chunks decoded ahead of the one that is counted

Decode = Callable[[str], Size | str]


@dataclass
class Counts:
    """Of each record in order, 4 bytes a figure: 0 prompt tokens for one that turned out bad."""

    prompt: array[int] = field(default_factory=lambda: array("I"))  # tokens, images included
    response: array[int] = field(default_factory=lambda: array("I"))  # tokens; 0 where the stage has none
    image_tokens: array[int] = field(default_factory=lambda: array("I"))
    images: array[int] = field(default_factory=lambda: array("I"))
    box_sides: array[float] = field(default_factory=lambda: array("f"))  # of each box: root of its share of the image
    bad: list[BadRecord] = field(default_factory=list)
    bad_tasks: Counter[str] = field(default_factory=Counter)
    decoded: int = 0  # image files


def look(
    records: Sequence[Record],
    processor: Processor,
    with_response: bool,
    threads: int,
    progress: Callable[[int, Counts], None],
) -> Counts:
    """Decode and count all records, in linear time; held are the figures, and the sizes of the images used last.

    `with_response`: stage 1, where the response counts towards data.max_length. `progress(records done, counts)`.
    """
    counts = Counts()
    decode = lru_cache(REMEMBERED)(partial(decoded, exif=processor.exif))
    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool:
        for chunk, sizes in _ahead(records, decode, pool):
            _count(chunk, sizes, processor, with_response, counts)
            counts.decoded = decode.cache_info().misses
            progress(len(counts.prompt), counts)
    return counts


def merged(report: Report, counts: Counts) -> Report:
    """The scan's report with the records that turned out bad behind it."""
    tasks = Counter(report.tasks) - counts.bad_tasks
    good = report.good - len(counts.bad)
    return replace(report, good=good, bad=(*report.bad, *counts.bad), tasks=dict(tasks))


def decoded(path: str, exif: str) -> Size | str:
    """(width, height) of an image after a full decode, or why there is none."""
    try:
        return load_image(path, exif).size
    except UNREADABLE as error:
        return str(error) or type(error).__name__


def _ahead(
    records: Sequence[Record], decode: Decode, pool: ThreadPoolExecutor
) -> Iterator[tuple[list[Record], dict[str, Size | str]]]:
    """Chunks of records with what became of their images, a few of them under way at once."""
    waiting: deque[tuple[list[Record], dict[str, Future[Size | str]]]] = deque()
    for start in range(0, len(records), CHUNK):
        chunk = [records[i] for i in range(start, min(start + CHUNK, len(records)))]
        paths = dict.fromkeys(path for record in chunk for path in record.images)
        waiting.append((chunk, {path: pool.submit(decode, path) for path in paths}))
        if len(waiting) > AHEAD:
            yield _settled(*waiting.popleft())
    while waiting:
        yield _settled(*waiting.popleft())


def _settled(chunk: list[Record], futures: dict[str, Future[Size | str]]) -> tuple[list[Record], dict[str, Size | str]]:
    return chunk, {path: future.result() for path, future in futures.items()}


def _count(
    chunk: list[Record], sizes: dict[str, Size | str], processor: Processor, with_response: bool, counts: Counts
) -> None:
    """Add a chunk's figures. What `make_sample` would refuse is refused here, in its words."""
    good = [i for i, record in enumerate(chunk) if all(not isinstance(sizes[path], str) for path in record.images)]
    frames = {i: Frame.of(chunk[i], sizes, processor) for i in good}
    prompts = dict(zip(good, _encode([frames[i].prompt for i in good], processor), strict=True))
    responses: dict[int, int] = {}
    if with_response:
        told = [i for i in good if chunk[i].response is not None]
        ids = _encode([frames[i].response for i in told], processor)
        responses = {i: len(of_one) for i, of_one in zip(told, ids, strict=True)}
    for i, record in enumerate(chunk):
        try:
            for path in record.images:
                if isinstance(problem := sizes[path], str):
                    raise DecodeError(record, path, problem)
            image_tokens = frames[i].image_tokens
            text = _text_tokens(record, prompts[i], processor)
            prompt, response = text + image_tokens, responses.get(i, 0)
            if prompt + response > processor.max_length:
                problem = f"{prompt + response} tokens, more than data.max_length={processor.max_length}"
                raise SampleError(record, "too_long", problem)
        except SampleError as error:
            counts.bad.append(error.bad_record())
            counts.bad_tasks[record.task] += 1
            prompt = response = image_tokens = 0
        else:
            sides = [((x2 - x1) * (y2 - y1)) ** 0.5 / 1000 for x1, y1, x2, y2 in (t.box for t in record.targets)]
            counts.box_sides.extend(sides)
        counts.prompt.append(prompt)
        counts.response.append(response)
        counts.image_tokens.append(image_tokens)
        counts.images.append(len(record.images))


@dataclass(frozen=True)
class Frame:
    """A record's texts as the model reads them, and the tokens that its images take."""

    prompt: str
    response: str
    image_tokens: int

    @classmethod
    def of(cls, record: Record, sizes: dict[str, Size | str], processor: Processor) -> Frame:
        shapes = [size for path in record.images if not isinstance(size := sizes[path], str)]
        factor = processor.image_processor.patch_size * processor.merge_size
        area = processor.image_processor.size
        low, high = int(area["shortest_edge"]), int(area["longest_edge"])
        resized = [smart_resize(size, factor, low, high) for size in shapes]

        def said(text: str, only_tokens: bool) -> str:
            targets = () if only_tokens else record.targets
            return to_model(text, processor.coordinates, shapes, resized, only_tokens, targets)

        prompt = said(prompt_text(record, processor.prompt_template), only_tokens=True)
        response = said(response_text(record), only_tokens=False) if record.response is not None else ""
        return cls(prompt, response, sum(width * height for width, height in resized) // factor**2)


def _encode(texts: Sequence[str], processor: Processor) -> list[np.ndarray]:
    if not texts:
        return []
    return [np.asarray(ids) for ids in processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _text_tokens(record: Record, ids: np.ndarray, processor: Processor) -> int:
    """Tokens of a prompt besides its images'."""
    places = int((ids == processor.image_token_id).sum())
    if places != len(record.images):
        problem = f"expected {len(record.images)} image placeholders, got {places}: the question holds its own"
        raise SampleError(record, "count", problem)
    return len(ids) - places
