"""Conversion as a command: where it writes, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from univg_fast.data.__main__ import main
from univg_fast.data.convert import convert

from .examples import ROWS


def test_a_file_may_be_converted_in_its_own_place(tmp_path: Path) -> None:
    """Nothing of the old file is lost before the new one is whole; what fails leaves it as it was."""
    path = tmp_path / "records.jsonl"
    path.write_text('{"question": "<image>Where?", "answer": [1, 2, 30, 40], "images": ["a.png"]}\n')
    before = path.read_text()
    with pytest.raises(ValueError):
        convert(path, path, "no format")
    assert path.read_text() == before
    assert convert(path, path, "univg_fast").written == 1
    assert json.loads(path.read_text())["question"] == "<image>Where?"
    assert [p.name for p in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize("row", ['{"question": 1}', ""], ids=["bad", "none"])
def test_nothing_is_replaced_by_nothing(tmp_path: Path, capsys, row) -> None:
    """A file without a good entry is a mistake, of `show`, too; what stands in its place stays."""
    source, out = tmp_path / "records.jsonl", tmp_path / "out.jsonl"
    source.write_text(row)
    out.write_text("precious")
    for arguments in (["convert", str(source), str(out), "--to", "univg_fast"], ["show", str(source)]):
        assert main(arguments) == 1
        assert f"error: {source}: " in capsys.readouterr().err
    assert out.read_text() == "precious" and len(list(tmp_path.iterdir())) == 2


def test_paths_are_told_without_detours(disk, capsys, monkeypatch):
    monkeypatch.chdir(disk.path)
    disk.jsonl(disk.stage2(images=["a.png", "./gone.png"]))
    for source in ("data.jsonl", "./data.jsonl"):
        assert main(["show", source]) == 1
        assert f"{disk.path}/gone.png" in capsys.readouterr().err


def test_a_link_is_written_through(disk, tmp_path_factory):
    far = tmp_path_factory.mktemp("far") / "real.jsonl"
    link = disk.path / "link.jsonl"
    link.symlink_to(far)
    for _ in range(2):
        assert convert(disk.jsonl(*ROWS["lisa"]), link, "univg_r1_stage2").written == 1
        assert link.is_symlink() and json.loads(far.read_text())["images"] == ["a.png"]
    assert os.listdir(far.parent) == ["real.jsonl"]


def test_only_files_are_replaced(disk, capsys):
    os.mkfifo(disk.path / "pipe")
    for out in (disk.path / "pipe", Path("/dev/null"), Path("."), Path("/proc/x.json")):
        assert main(["convert", str(disk.jsonl(*ROWS["lisa"])), str(out), "--to", "univg_fast"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {out} cannot be written: ") and "unfinished" not in err, err
    assert (disk.path / "pipe").is_fifo() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("out", ["gone/x.jsonl", "video", "data.jsonl/x.json"])
def test_a_place_that_cannot_be_written_is_one_line(disk, capsys, out):
    source = str(disk.jsonl(*ROWS["lisa"]))
    assert main(["convert", source, str(disk.path / out), "--to", "univg_fast"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and out.partition("/")[0] in err


def test_the_commands(disk, capsys):
    source = str(disk.jsonl(*ROWS["lisa"]))
    assert main(["show", source]) == 0
    assert f"{source}: lisa 1" in capsys.readouterr().out
    assert main(["convert", source, str(disk.path / "out.jsonl"), "--to", "univg_r1_stage2"]) == 0
    assert json.loads((disk.path / "out.jsonl").read_text())["answer"] == [0, 0, 500, 250]
    assert main(["show", str(disk.path / "gone.json")]) == 2
    assert "gone.json: no such file" in capsys.readouterr().err
    assert main(["show", str(disk.path)]) == 2
    assert main(["show", str(disk.jsonl({"question": 1}))]) == 1
    done = subprocess.run([sys.executable, "-m", "univg_fast.data", "show", source], capture_output=True, text=True)
    assert done.returncode == 1 and "left out" in done.stderr
