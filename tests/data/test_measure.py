"""A sample's size is known before anything is decoded, and it is the size of the sample that is made then."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from univg_fast.data import images as image_files
from univg_fast.data.errors import SampleError
from univg_fast.data.images import Headers
from univg_fast.data.records import read_records
from univg_fast.data.samples import make_processor, make_sample, measure
from univg_fast.packing import GroupSize
from univg_fast.structs import Record, Target

SIDES = st.tuples(st.integers(1, 700), st.integers(1, 700))
WORDS = st.lists(st.sampled_from(("Where", "is", "it?", "(100,200),(300,400)", "[1, 2, 30, 40]", "红")), min_size=1)


def size_of(sample) -> GroupSize:
    responses = () if sample.response_ids is None else (len(sample.response_ids),)
    assert len(sample.pixel_values) == sample.image_grid_thw.prod(-1).sum()
    return GroupSize(len(sample.prompt_ids), responses, len(sample.pixel_values))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shapes=st.lists(st.tuples(SIDES, st.sampled_from(("png", "jpg", "tif")), st.integers(1, 8)), max_size=4),
    words=WORDS,
    patch_size=st.sampled_from((14, 16)),
    coordinates=st.sampled_from(("norm1000", "resized")),
    exif=st.sampled_from(("ignore", "apply")),
    template=st.sampled_from(("short", "qwen2_vl")),
)
def test_measured_equals_made(
    shapes, words, patch_size, coordinates, exif, template, tokenizer, tmp_path_factory
) -> None:
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for number, (size, ending, orientation) in enumerate(shapes):
        tag = Image.Exif()
        tag[image_files.ORIENTATION] = orientation
        paths.append(str(folder / f"{number}.{ending}"))
        Image.new("RGB", size, "teal").save(paths[-1], exif=tag)
    text = " ".join(words)
    record = Record("u", "f:1", tuple(paths), text, (Target((0, 0, 500, 500), 0),), f"<think>{text}</think>", cot=True)
    processor = make_processor(
        tokenizer,
        min_pixels=4 * patch_size**2,
        max_pixels=90_000,
        patch_size=patch_size,
        prompt_template=template,
        coordinates=coordinates if shapes else "norm1000",
        exif=exif,
    )
    for with_response in (True, False):
        try:
            expected = size_of(make_sample(record, processor, with_response))
        except SampleError as error:
            with pytest.raises(SampleError, match=r"a side may be 200 times|ratio|f:1"):
                measure(record, processor, with_response, Headers())
            assert error.kind == "aspect"
        else:
            assert measure(record, processor, with_response, Headers()) == expected


def test_every_built_in_record(records, processor) -> None:
    headers = Headers()
    for record in records:
        assert measure(record, processor, True, headers) == size_of(make_sample(record, processor, True))


def test_nothing_is_decoded(records, processor, monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(image_files, "load_image", refuse)
    monkeypatch.setattr(Image.Image, "load", refuse)
    measure(records[0], processor, True, Headers())


@pytest.mark.parametrize("kind", ["missing", "decode", "count", "too_long", "schema"])
def test_what_it_refuses(kind, folder, tokenizer) -> None:
    """What make_sample would refuse, but for a body that only a decoder finds damaged."""
    question = "<|image_pad|>" if kind == "count" else "Where?"
    row = folder.stage2(question="<image><image>Where?") if kind == "schema" else folder.stage1()
    (record,), _ = read_records(folder.jsonl(row))
    path = folder.path / "c.png"
    if kind == "decode":
        path.write_bytes(b"no image")
    images = (record.images[0], str(path)) if kind in ("missing", "decode") else record.images
    record = Record(**(record.__dict__ | {"images": images, "question": question}))
    processor = make_processor(tokenizer, max_length=5 if kind == "too_long" else 8192)
    with pytest.raises(SampleError) as caught:
        measure(record, processor, True, Headers())
    assert caught.value.kind == kind and str(caught.value).startswith(record.source)
    with pytest.raises(SampleError):
        make_sample(record, processor, True)
