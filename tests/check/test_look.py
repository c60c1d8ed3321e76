"""What is counted without making samples equals what the samples hold; what they refuse is refused, in their words."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from univg_fast.check.look import CHUNK, Counts, look
from univg_fast.data.builtin import BuiltinConfig, write_builtin
from univg_fast.data.errors import SampleError
from univg_fast.data.prompts import corpus
from univg_fast.data.records import read_records
from univg_fast.data.samples import Processor, make_processor, make_sample
from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.structs import Record, Target


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("look")
    files = write_builtin(folder, BuiltinConfig(num_sft=12, num_grpo=0, num_eval=0, crops=8))
    found, _ = read_records(files["sft"])
    rng = np.random.default_rng(0)
    for i, size in enumerate([(1, 1), (30, 29), (641, 77), (1200, 900), (33, 4000)]):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(folder / f"odd{i}.png")
        boxes = (Target((1, 2, 300, 400), 0, "a"), Target((5, 6, 700, 800), 1, "b"))
        images = (str(folder / f"odd{i}.png"), found[0].images[0])
        style = ("univg_r1", "bbox_2d", "box_tokens")[i % 3]
        question = "Find it <|box_start|>(1,2),(300,400)<|box_end|>"
        found.append(
            Record(f"odd{i}", f"f:{i}", images, question, boxes, "<answer>(1,2),(3,4)</answer>", answer_style=style)
        )
    (folder / "cut.png").write_bytes((folder / "odd3.png").read_bytes()[:5000])
    found.append(replace(found[0], source="f:90", images=(str(folder / "cut.png"),)))
    found.append(replace(found[0], source="f:91", question="a <|image_pad|> of its own"))
    found.append(replace(found[0], source="f:92", question="12 " * 1000))
    return found


def processor(records: list[Record], **options: object) -> Processor:
    return make_processor(build_tokenizer(corpus(records)), max_length=2000, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("with_response", [True, False])
@pytest.mark.parametrize("options", [{}, {"coordinates": "resized"}, {"max_pixels": 50_000}, {"patch_size": 16}])
def test_counts_are_those_of_the_samples(
    records: list[Record], options: dict[str, object], with_response: bool
) -> None:
    made = processor(records, **options)
    counts = look(records, made, with_response, 2, lambda done, counts: None)
    refused = []
    for i, record in enumerate(records):
        try:
            sample = make_sample(record, made, with_response)
        except SampleError as error:
            refused.append(error.bad_record())
            assert counts.prompt[i] == counts.response[i] == counts.image_tokens[i] == 0
            continue
        assert counts.prompt[i] == len(sample.prompt_ids)
        assert counts.response[i] == (len(sample.response_ids) if sample.response_ids is not None else 0)
        assert counts.image_tokens[i] == (sample.prompt_ids == made.image_token_id).sum()
    assert counts.bad == refused and Counter(b.kind for b in refused) == {"decode": 1, "count": 1, "too_long": 1}
    assert list(counts.images) == [len(record.images) for record in records]


def test_every_chunk_is_told_and_threads_change_nothing(records: list[Record]) -> None:
    many, told = records * 20, []
    made = processor(records)
    one = look(many, made, True, 1, lambda done, counts: told.append(done))
    four = look(many, made, True, 4, lambda done, counts: None)
    assert told == [*range(CHUNK, len(many), CHUNK), len(many)]
    assert (one.prompt, one.response, one.bad, one.box_sides) == (four.prompt, four.response, four.bad, four.box_sides)
    assert one.decoded == len({path for record in records for path in record.images})  # each file once


def test_box_sides(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    record = Record("u", "f:1", (str(tmp_path / "a.png"),), "q", (Target((0, 0, 500, 500)), Target((0, 0, 100, 400))))
    counts = look([record], processor([record]), False, 1, lambda done, counts: None)
    assert list(counts.box_sides) == pytest.approx([0.5, 0.2])
    assert isinstance(counts, Counts) and counts.bad == []


class Endless(Sequence[Record]):
    """So many records, each made when it is asked for, as those of a file are."""

    def __init__(self, record: Record, number: int):
        self.record, self.number = record, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, at: Any) -> Any:
        return replace(self.record, uid=f"u{at}", source=f"f:{at}", question=f"Where is number {at}?")


def test_memory_grows_by_bytes_a_record(records: list[Record]) -> None:
    made = processor(records)
    held = []
    for number in (500, 2500):
        tracemalloc.start()
        counts = look(Endless(records[0], number), made, True, 1, lambda done, counts: None)
        gc.collect()  # how much waits to be collected depends on all else in the process
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(counts.prompt) == number
    assert (held[1] - held[0]) / 2000 < 64
