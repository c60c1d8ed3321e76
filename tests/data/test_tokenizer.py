"""The tokenizer: nothing is lost, digits stand alone, the fixed parts of an answer are cheap."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from univg_fast.data.prompts import corpus
from univg_fast.data.tokenizer import SPECIAL_TOKENS, build_tokenizer


def pieces(tokenizer, text):
    return [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]


@pytest.fixture(scope="module")
def encode_decode(tokenizer):
    return lambda text: tokenizer.decode(tokenizer(text)["input_ids"])


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_survives(encode_decode, text):
    assert encode_decode(text) == text


@settings(max_examples=200, deadline=None)
@given(
    before=st.text("(),. <>/aein1250", max_size=8),
    digit=st.sampled_from("0123456789"),
    after=st.text("(),. <>/aein1250", max_size=8),
)
def test_a_digit_never_merges(tokenizer, before, digit, after):
    ids = tokenizer(before + digit + after)["input_ids"]
    single = tokenizer.convert_tokens_to_ids(digit)
    assert ids.count(single) == (before + digit + after).count(digit)
    assert not [token for token in tokenizer.get_vocab() if any(c.isdigit() for c in token) and len(token) > 1]


def test_an_answer_is_short(tokenizer, records):
    for record in records:
        think, answer = record.response.split("</think>")
        # a word is at most one token, a mark or a digit is one; the tags between them come nearly free
        parts = len(re.findall(r"[A-Za-z]+", think)) + len(re.findall(r"[;.,():]|\d", think + answer))
        assert len(tokenizer(record.response)["input_ids"]) <= parts + 2
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert len(tokenizer(tag)["input_ids"]) == 1


def test_neighbours_that_always_meet_become_one_token():
    texts = [f"<think>{word} {i}.</think><answer>({i},{i})</answer>" for i in range(99) for word in "abcd"]
    tight, loose = build_tokenizer(texts), build_tokenizer(texts, cohesion=1.1)
    text = "<think>a 1.</think><answer>(2,3)</answer>"
    assert pieces(tight, text) == ["<think>", "a", " ", "1", ".</think><answer>(", "2", ",", "3", ")</answer>"]
    words = ["<think>", "a", " ", "1", ".", "</think>", "<answer>", "(", "2", ",", "3", ")", "</answer>"]
    assert pieces(loose, text) == words


def test_colours_and_shapes_stay_tokens_of_their_own(tokenizer):
    found = pieces(tokenizer, "Find the red circle.")
    assert " red" in found and " circle" in found


def test_the_same_texts_give_the_same_tokenizer(records, tokenizer):
    again = build_tokenizer(corpus(records))
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_special_tokens_are_single_and_last(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert sorted(ids) == list(range(len(tokenizer) - len(SPECIAL_TOKENS), len(tokenizer)))
    assert tokenizer("".join(SPECIAL_TOKENS))["input_ids"] == ids
    assert tokenizer.decode([*ids, ids[0]], skip_special_tokens=True) == ""
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert 270 <= len(tokenizer) <= 512


def test_auto_tokenizer_loads_what_was_saved(records, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*corpus(records), "<|im_start|>1234 é 漢<|im_end|>"]
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert len(loaded) == len(tokenizer) and loaded.eos_token_id == tokenizer.eos_token_id


def test_a_vocabulary_too_small_is_refused():
    with pytest.raises(ValueError, match="vocab_size: expected at least 270"):
        build_tokenizer(["text"], vocab_size=269)


def test_a_full_vocabulary_is_not_exceeded(records):
    assert len(build_tokenizer(corpus(records), vocab_size=280)) == 280
