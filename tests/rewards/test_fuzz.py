"""Random and hostile completions: nothing crashes, nothing hangs, both faces agree, and time is linear in the text.

The suite takes a sample. The full run, one process and one thread; of every 20th text both faces are compared, or of as
many as a second number says:

    OMP_NUM_THREADS=1 python tests/rewards/test_fuzz.py 1000000
    OMP_NUM_THREADS=1 python tests/rewards/test_fuzz.py 200000 1
"""

from __future__ import annotations

import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the command above; pytest has it

from rewards.adversarial import completions, long_texts  # noqa: E402
from rewards.faces import differing  # noqa: E402
from speed import is_linear, within  # noqa: E402
from univg_kernels.scan_boxes import MODES, STYLES, scan_boxes  # noqa: E402

from univg_fast.rewards import TERMS, Settings, score  # noqa: E402
from univg_fast.structs import Record, Target  # noqa: E402

BATCH = 2000
COMPARED = 20  # of so many texts, one is read by both faces
TARGETS = (Target((1, 2, 300, 400), 0, "cat"), Target((5, 6, 7, 8), 1), Target((0, 0, 1000, 1000), 1))
RECORDS = [
    Record("u", "f:1", tuple("abc"[:images]), "q", TARGETS[:n], cot=cot, answer_style=style)
    for style in STYLES
    for cot in (True, False)
    for n, images in ((1, 1), (2, 2), (3, 3))
]
LEAST = {"giou": -1.0, "count": -1.0, "length": -1.0, "repetition": -1.0}


def check_batch(texts: list[str], seed: int, compared: int = COMPARED) -> None:
    """Each mode, with every term: finite, within its range, the counts fit the arrays, and the faces agree."""
    records = [RECORDS[(seed + i) % len(RECORDS)] for i in range(len(texts))]
    parser = ("univg_r1", "strict", "lenient")[seed % 3]
    lengths = [len(text) for text in texts]
    scores = score(texts, records, dict.fromkeys(TERMS, 1.0), Settings(parser=parser), lengths)
    for name, part in scores.parts.items():
        assert np.isfinite(part).all() and part.min() >= LEAST.get(name, 0.0) and part.max() <= 1.0, name
    styles, cot = [r.answer_style for r in records], [r.cot for r in records]
    for mode in MODES:
        found = scan_boxes(texts, mode=mode, styles=styles, cot=cot)
        assert bool(torch.isfinite(found.boxes).all()) and int(found.offsets[-1]) == len(found.boxes)
        assert bool((found.counts.clamp(max=512) == found.offsets.diff()).all())
        some = slice(seed % compared, None, compared)
        wrong = differing(texts[some], mode, styles[some], cot[some])
        assert not wrong, wrong[0]


def test_a_sample() -> None:
    stream = completions(1)
    for seed in range(10):
        check_batch(list(islice(stream, BATCH)), seed)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("mode", MODES)
def test_time_is_linear_in_the_text(mode: str, backend: str) -> None:
    """Eight times the text, about eight times as long: quadratic time would be 64 times."""
    short, long = (3000, 24_000) if backend == "reference" else (25_000, 200_000)
    for (name, small), (_, large) in zip(long_texts(short), long_texts(long), strict=True):
        texts = {short: small, long: large}
        for style in STYLES if mode == "strict" else STYLES[:1]:
            run = partial(scan_boxes, mode=mode, styles=style, backend=backend)
            assert is_linear(lambda size: run([texts[size]]), short, long), (name, style)  # noqa: B023


def test_every_term_is_linear_in_the_text() -> None:
    record = RECORDS[2]
    for name, large in long_texts(300_000):
        for parser in ("univg_r1", "strict", "lenient"):
            run = partial(score, [large], [record], dict.fromkeys(TERMS, 1.0), Settings(parser), [9])
            assert within(1.0, run, tries=5), (name, parser)


def main(count: int, compared: int = COMPARED) -> None:
    start, worst, stream = time.perf_counter(), 0.0, completions(2026)
    for seed in range(-(-count // BATCH)):
        texts = list(islice(stream, min(BATCH, count - seed * BATCH)))
        before = time.perf_counter()
        check_batch(texts, seed, compared)
        worst = max(worst, time.perf_counter() - before)
        if seed % 50 == 49:
            print(f"{(seed + 1) * BATCH} completions, {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{count} completions in {time.perf_counter() - start:.0f} s, the slowest batch of {BATCH} {worst:.2f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
