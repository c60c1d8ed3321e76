"""Each image's header is read by one rank, once: the scan shares them out, and the plans know the sizes from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

RECORDS = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records of two images each, of which some are missing, damaged or too long."""
    rows = []
    for number in range(RECORDS):
        names = [f"{number}.png", f"{number}b.png"]
        Image.new("RGB", (40 + number, 60)).save(tmp_path / names[0])
        Image.new("RGB", (404, 2) if number == 5 else (56, 30 + number)).save(tmp_path / names[1])
        said = [("human", "<image>\n<image>\nWhere is it?"), ("gpt", "<answer>(0,0),(500,250)</answer>")]
        rows.append({"images": names, "conversations": [{"from": who, "value": what} for who, what in said]})
    (tmp_path / "3b.png").unlink()
    (tmp_path / "4.png").write_bytes(b"no image")
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_two_ranks_open_each_image_once_and_fail_together(launch: Callable[..., Any], folder: Path) -> None:
    done = launch("headers_worker.py", folder, world=2, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]
    ranks = [counted for counted, _, _ in told]
    images = sorted(name for number in range(RECORDS) for name in (f"{number}.png", f"{number}b.png"))
    assert sorted(name for rank in ranks for name in rank["scan"]) == images, "each of them on one rank, and once"
    assert all(len(rank["scan"]) == RECORDS for rank in ranks), "half of them each"
    assert all(rank["plan"] == [] and rank["refused"] == 0 for rank in ranks), "the plan knows their sizes"
    assert len({rank["digest"] for rank in ranks}) == 1
    for rank in ranks:
        assert rank["same"], "as one process that opens all of them"
        assert rank["good"] == RECORDS - 3 and len(rank["bad"]) == 3
    kinds = ((4, "3b.png does not exist"), (5, "4.png is not an image"), (6, "404x2 px"))
    for message, (line, words) in zip(ranks[1]["bad"], kinds, strict=True):
        assert f"sft.jsonl:{line}:" in message and words in message
    for _, failed, differed in told:
        assert failed.startswith("reading images' headers failed on rank 1: RuntimeError: cannot schedule new futures")
        assert differed == (
            "data: the ranks read different records (rank 0: 1 images, rank 1: 3 records); do all see the same files?"
        )
