"""Small files that a kill or a full disk cut: never made by us, and no obstacle where they are found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import univg_fast
from univg_fast.config import load_config
from univg_fast.files import read_json, write_whole
from univg_fast.train.road import finish, summary_at

SUMMARY = {"name": "before", "samples": 1}
FULL = """
import resource, sys; from pathlib import Path; from univg_fast.files import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
write_whole(Path(sys.argv[1]), "x" * 1000)
"""


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "summary.json"
    write_whole(path, json.dumps(SUMMARY))
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert read_json(path) == SUMMARY


def test_files_are_written_whole_in_one_place() -> None:
    root = Path(univg_fast.__file__).parent
    own = {"cot/journal.py", "train/export.py", "train/export_run.py"}  # what grows by lines, and whole folders
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if "os.replace(" in path.read_text()}
    assert found == own | {"files.py"}


@pytest.mark.parametrize("text", ["", '{"name": "bef', "3"])
def test_a_cut_summary_is_an_evaluation_that_was_not_made(tmp_path: Path, capsys: Any, text: str) -> None:
    path = tmp_path / "eval" / "before.json"
    assert summary_at(path) is None and capsys.readouterr().err == ""
    path.parent.mkdir()
    path.write_text(text)
    assert summary_at(path) is None
    assert f"{path} is not a whole summary" in capsys.readouterr().err


def test_a_cut_summary_does_not_end_a_run_at_its_end(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "before.json").touch()
    finish(load_config(["--config", "demo", f"--run.dir={tmp_path}"]), tmp_path)
    assert f"report: {tmp_path}/report.html" in capsys.readouterr().out
