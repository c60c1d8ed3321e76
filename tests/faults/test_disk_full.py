"""A full disk: the old checkpoint stays whole, nothing half written stays, and the run goes on or ends by config.

The file system is a tmpfs of 1 MB in a mount namespace of its own. Where that is not allowed, test_checkpoint.py still
has a rank whose files may not grow.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.torchrun import torchrun

HERE = Path(__file__).parent
MOUNT = "mount -t tmpfs -o size=1m none {} && exec {}"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of both ranks."""
    disk = tmp_path_factory.mktemp("disk")
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    alone = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*alone, MOUNT.format(disk, "true")], capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs in a namespace of its own (unshare -rm) is not allowed here")
    command = [*torchrun(2), str(HERE / "disk_worker.py"), str(disk)]
    line = MOUNT.format(shlex.quote(str(disk)), shlex.join(command))
    done = subprocess.run([*alone, line], capture_output=True, text=True, env=environment, timeout=280)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, done.stdout[-2000:] + done.stderr[-4000:]
    found: list[dict[str, Any]] = json.loads(lines[0].removeprefix("RESULT "))
    found[0]["stderr"] = done.stderr
    return found


@pytest.mark.parametrize("when", ["full_before", "full_meanwhile"])
def test_a_full_disk_is_survived(reports: list[dict[str, Any]], when: str) -> None:
    for report in reports:
        assert report["first"]["there"] == report[when]["there"] == ["sft_000001"], (
            "the old one, and nothing half written"
        )
        assert report[when]["defects"] == [None]
        assert report[when]["raised"] == ""
    failed = {"full_before": 1, "full_meanwhile": 2}[when]
    assert [report[when]["failed"] for report in reports] == [failed] * 2, "counted on every rank"


def test_it_is_said_with_both_numbers_of_bytes(reports: list[dict[str, Any]]) -> None:
    told = [line for line in reports[0]["stderr"].splitlines() if line.startswith("warning: ")]
    before, meanwhile = [line for line in told if "tries again" in line]
    assert "not enough room on the disk" in before and "writing checkpoint" in meanwhile
    for line in (before, meanwhile):
        free, needed = (
            int(x.replace(",", "")) for x in re.findall(r"had ([\d,]+) bytes free .* about ([\d,]+)\.", line)[0]
        )
        assert 0 <= free < needed < 1_000_000


@pytest.mark.parametrize("how", ["must", "stop"])
def test_a_save_that_must_not_fail_ends_the_run(reports: list[dict[str, Any]], how: str) -> None:
    for report in reports:
        assert "not enough room on the disk" in report[f"full_before_{how}"]["raised"]
        assert report[f"full_before_{how}"]["there"] == ["sft_000001"]


def test_the_next_save_works_and_prunes(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["room_again"]["there"] == ["sft_000006"] and report["room_again"]["defects"] == [None]
