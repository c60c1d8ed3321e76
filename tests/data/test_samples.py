"""A sample is the template's text with the placeholders repeated, and the image processor's own patches."""

import numpy as np
import pytest
from PIL import Image

from univg_fast.data.errors import DecodeError, SampleError
from univg_fast.data.images import load_images
from univg_fast.data.prompts import COT_SUFFIX, DIRECT_PREFIX, prompt_text, split_instruction
from univg_fast.data.records import read_records
from univg_fast.data.samples import make_processor, make_sample
from univg_fast.structs import BadRecord, Record

PLAIN = Record(uid="u", source="f:1", images=("a", "b"), question="Where is it?")


def test_the_qwen2_vl_template_in_full():
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert prompt_text(PLAIN) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"{image}{image}Where is it? First output the thinking process in <think> </think> tags and then "
        "output the bounding box in <answer> </answer> tags.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_direct_prompt_has_a_notice_and_no_instruction():
    direct = Record(uid="u", source="f:1", images=("a",), question="Where is it?", cot=False)
    text = prompt_text(direct)
    assert "<|vision_end|>This is a single image grounding task with simple reference. Where is it?<|im_end|>" in text
    assert "<think>" not in text


def test_the_short_template_has_neither_roles_nor_instruction():
    assert prompt_text(PLAIN, "short").count("<|vision_start|>") == 2
    assert prompt_text(PLAIN, "short").endswith("<|vision_end|>Where is it?<|im_end|><|im_start|>")


@pytest.mark.parametrize(
    ("text", "question", "cot"),
    [
        ("Where?" + COT_SUFFIX, "Where?", True),
        ("\nWhere?" + COT_SUFFIX + "\n", "Where?", True),
        (DIRECT_PREFIX + "Where?", "Where?", False),
        ("Where?", "Where?", None),
    ],
)
def test_the_instruction_is_taken_off(text, question, cot):
    assert split_instruction(text) == (question, cot)


@pytest.mark.parametrize("template", ["qwen2_vl", "short"])
def test_placeholders_are_expanded_by_each_images_own_grid(folder, tokenizer, template):
    Image.new("RGB", (140, 84), "teal").save(folder.path / "b.png")
    Image.new("RGB", (56, 112), "teal").save(folder.path / "c.png")
    row = folder.stage1("<image><image><image>Find the red circle.", images=["a.png", "b.png", "c.png"])
    (record,), _ = read_records(folder.jsonl(row))
    processor = make_processor(tokenizer, prompt_template=template)
    sample = make_sample(record, processor, with_response=True)
    tokens = sample.image_grid_thw.prod(1) // 4
    assert tokens.tolist() == [6, 15, 8]  # a.png: 60x40 px, enlarged to min_pixels: 84x56
    expanded = "".join(f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in tokens)
    text = prompt_text(record, template).replace("<|vision_start|><|image_pad|><|vision_end|>" * 3, expanded)
    assert tokenizer.decode(sample.prompt_ids) == text
    assert tokenizer.decode(sample.response_ids) == record.response + "<|im_end|>"
    assert sample.response_ids[-1] == processor.end_token_id
    assert sample.sizes == ((60, 40), (140, 84), (56, 112))
    expected = processor.image_processor(images=load_images(record), return_tensors="np")
    frames = expected["pixel_values"].reshape(4 * tokens.sum(), 3, 2, 14 * 14)  # a still image's two are equal
    for frame in (frames[:, :, 0], frames[:, :, 1]):
        assert np.array_equal(sample.pixel_values, frame.reshape(len(frame), 588))
    assert sample.pixel_values.dtype == np.float32
    assert make_sample(record, processor, with_response=False).response_ids is None


def test_a_truncated_image(folder, processor):
    (record,), _ = read_records(folder.jsonl(folder.stage2()))
    whole = (folder.path / "b.png").read_bytes()
    folder.write("b.png", whole[: len(whole) // 2])
    with pytest.raises(DecodeError, match=rf"^{record.source}: cannot decode the image {record.images[1]}"):
        make_sample(record, processor, with_response=False)


def test_too_long(folder, tokenizer):
    (record,), _ = read_records(folder.jsonl(folder.stage1(id="long one")))
    length = 0
    for limit, fits in ((8192, True), (None, True), (-1, False)):
        limit = limit if limit is not None and limit > 0 else length + (limit or 0)
        processor = make_processor(tokenizer, max_length=limit)
        if fits:
            sample = make_sample(record, processor, with_response=True)
            length = len(sample.prompt_ids) + len(sample.response_ids)
            continue
        with pytest.raises(SampleError) as caught:
            make_sample(record, processor, with_response=True)
        problem = f"{record.source} (long one): {length} tokens, more than data.max_length={limit}"
        assert caught.value.bad_record() == BadRecord(record.source, "too_long", problem, "long one")


def test_a_question_with_a_placeholder_of_its_own(folder, processor):
    row = folder.stage2(question="<image><image>Where is <|image_pad|>?")
    (record,), _ = read_records(folder.jsonl(row))
    with pytest.raises(SampleError, match="expected 2 image placeholders, got 3"):
        make_sample(record, processor, with_response=False)


def test_a_stage_2_record_has_no_response(folder, processor):
    (record,), _ = read_records(folder.jsonl(folder.stage2()))
    with pytest.raises(SampleError, match="has none"):
        make_sample(record, processor, with_response=True)


def test_a_tokenizer_of_another_family_is_refused():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})))
    with pytest.raises(ValueError, match=r"lacks <\|image_pad\|>"):
        make_processor(other)
