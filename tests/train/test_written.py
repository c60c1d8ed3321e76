"""A rank hashes and syncs the files of a checkpoint that it wrote: another machine has nothing of them in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from univg_fast.train import manifest


def test_each_rank_reads_back_what_it_wrote_itself(launch: Callable[..., Any], tmp_path: Path) -> None:
    done = launch("written_worker.py", tmp_path, world=2, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found = json.loads(line.removeprefix("RESULT "))
    optimizers = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
    assert found["opened"] == [
        ["mp_rank_00_model_states.pt", "rank_0000.pt", optimizers[0]],
        ["rank_0001.pt", optimizers[1]],
    ]
    names = sorted(name for rank in found["opened"] for name in rank)
    assert sorted(name.rpartition("/")[2] for name in found["files"]) == names, "all of them are in the manifest"


def test_what_no_rank_says_it_wrote_is_in_the_manifest_or_an_error(tmp_path: Path) -> None:
    """As what DeepSpeed copies by itself; and what was written, but is not there, is an error."""
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_text(name)
    assert sorted(manifest.sync_share(tmp_path, ["a.pt", "b.pt"], written=[["a.pt"]])) == ["a.pt", "b.pt"]
    with pytest.raises(FileNotFoundError, match=r"c\.pt"):
        manifest.sync_share(tmp_path, ["a.pt"], written=[["c.pt"]])
