"""A checkpoint of one number of ranks goes on with another: the losses are those of a run that was not interrupted."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

STAGES = [
    *("0 float32", "1 float32", "2 float32", "3 float32", "1 bfloat16", "2 bfloat16", "3 bfloat16"),
    *("1 float32 offload", "2 float32 offload", "3 float32 offload"),
]


def result(done: subprocess.CompletedProcess[str]) -> Any:
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("RESULT "))


@pytest.fixture(scope="module", params=[(1, 2), (2, 1)], ids=["1to2", "2to1"])
def courses(request: pytest.FixtureRequest, launch: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, (before, after) = tmp_path_factory.mktemp("reshape"), request.param
    whole = result(launch("reshape_worker.py", "whole", folder, world=before))
    done = launch("reshape_worker.py", "resume", folder, world=after)
    assert f"was written by {before} ranks and is divided anew for {after}" in done.stderr
    assert "the configuration's holds" not in done.stderr, "no rate is another one"
    assert not list(folder.glob("*/.tmp-*")), "the universal checkpoint is removed"
    return whole, result(done)


@pytest.mark.slow
@pytest.mark.parametrize("course", STAGES)
def test_losses_go_on_as_if_uninterrupted(courses: Any, course: str) -> None:
    whole, rest = courses[0][course], courses[1][course]
    assert rest["first"] == 2 and len(rest["steps"]) == 3
    limit = 1e-5 if "float32" in course else 2e-2  # bfloat16 gradients are rounded before ranks are summed
    assert rest["steps"][0][0] == pytest.approx(whole["steps"][2][0], rel=1e-6), "the weights are the same"
    for (loss, norm, rate), (wanted, wanted_norm, wanted_rate) in zip(rest["steps"], whole["steps"][2:], strict=True):
        assert loss == pytest.approx(wanted, rel=limit) and norm == pytest.approx(wanted_norm, rel=limit)
        assert rate == wanted_rate
    if len(rest["random"]) == 2:
        assert rest["random"][0] != rest["random"][1], "the new rank has random streams of its own"
        others = [courses[1][f"{zero} float32"]["random"][1] for zero in range(4)]
        assert len({*others}) == 4 and rest["random"][1] == others[int(course[0])], "by run.seed, and nothing else"
        assert rest["random"][1] not in whole["random"]
