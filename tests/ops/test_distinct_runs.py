"""Runs of words: both faces count the same on white space of all scripts, and time is linear whatever the text."""

from __future__ import annotations

import random

import pytest
import torch
from speed import is_linear
from univg_kernels import distinct_runs

SPACES = [c for c in map(chr, range(0x3001)) if c.isspace()]
# Not white space, though it looks like it; words of 7, 8, 9 and 16 bytes; those that differ by a NUL only.
WORDS = ["a", "b", "ab", "b\x00", "\x00", "\x1b", "\u200b", "\u2010", "é", "中文", "\ud800", "Â", "\u3001"]
WORDS += ["1234567", "12345678", "123456789", "1234567812345678", "12345678" + "\x00"]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_faces_agree(n: int) -> None:
    draw = random.Random(n)
    pieces = SPACES + WORDS * 3
    texts = ["".join(draw.choices(pieces, k=draw.randrange(120))) for _ in range(2000)]
    texts += ["", " ", "a", *(f"x{space}y{space}{space}x" for space in SPACES)]
    found = distinct_runs(texts, n)
    assert torch.equal(found, distinct_runs(texts, n, backend="reference")) and found.dtype == torch.int64
    tagged = [text + "<answer>" * draw.randrange(3) + text for text in texts]
    cut = [draw.random() < 0.5 for _ in texts]
    assert torch.equal(
        distinct_runs(tagged, n, unanswered=cut), distinct_runs(tagged, n, unanswered=cut, backend="reference")
    )


def test_by_hand() -> None:
    assert distinct_runs(["a b a b c", "a", "", "a  a\ta"], 2).tolist() == [[3, 4], [0, 0], [0, 0], [1, 2]]
    assert distinct_runs([], 2).shape == (0, 2)
    tagged = ["a a <answer> a a <answer>a a", "a a a"]
    assert distinct_runs(tagged, 1, unanswered=[True, True]).tolist() == [[2, 5], [0, 0]]
    with pytest.raises(ValueError, match="unanswered must have one entry for each of 2 texts, got 1"):
        distinct_runs(tagged, 1, unanswered=[True])
    with pytest.raises(ValueError, match="distinct_runs: n must be 1 or more words, got 0"):
        distinct_runs(["a"], 0)


@pytest.mark.parametrize("text", ["a ", "a", " ", "word ", "中", "\u3000", "\x00", "ab cd "])
@pytest.mark.parametrize("n", [3, 5000])
def test_time_is_linear(text: str, n: int) -> None:
    assert is_linear(lambda times: distinct_runs([text * times], n), 50_000, 400_000)
