"""Checkpoints: bit-exact resume, no half one that counts, and a failing rank that takes nobody hostage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from univg_fast.train import manifest, resume

STAGES = ["0", "1", "2", "3", "1b", "2b", "3b"]  # of ZeRO; b: in bfloat16


def result(done: subprocess.CompletedProcess[str]) -> Any:
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("RESULT "))


@pytest.fixture(scope="module", params=[1, 2], ids=["world1", "world2"])
def courses(request: pytest.FixtureRequest, launch: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """At each of STAGES, what an uninterrupted run logged and what another process logged, resuming."""
    folder, stages = tmp_path_factory.mktemp("resume"), ",".join(STAGES)
    whole = result(launch("checkpoint_worker.py", "train", stages, folder, world=request.param))
    done = launch("checkpoint_worker.py", "resume", stages, folder, world=request.param)
    return dict(zip(STAGES, whole, strict=True)), dict(zip(STAGES, result(done), strict=True)), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bit_exact(courses: Any, stage: str) -> None:
    whole, rest = courses[0][stage], courses[1][stage]
    assert len(whole) == 5 and len({loss for loss, *_ in whole}) == 5
    assert rest["log"] == whole[2:], "losses, gradient norms and learning rates, every bit"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_nothing_of_an_update_that_is_given_up_is_saved(courses: Any, stage: str) -> None:
    """Two rows have been backward, and no step was made."""
    assert courses[1][stage]["given_up"] == courses[0][stage][2:]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_configuration_decides_the_rates_after_a_resume(courses: Any, stage: str) -> None:
    whole, rest = courses[0][stage], courses[1][stage]
    assert rest["rates"] == pytest.approx([rate / 2 for *_, rate in whole[2:]], rel=1e-12), (
        "half the peak, same schedule"
    )
    assert rest["groups"] == [[0.0, 0.9, 0.5]] * 2
    assert courses[2].count("has learning_rate 0.01, not 0.005; the configuration's holds from here on") == len(STAGES)


def test_a_rank_that_cannot_write_makes_all_give_up_and_go_on(launch: Any, tmp_path: Path) -> None:
    report = result(launch("checkpoint_worker.py", "fail", 1, tmp_path, world=2))
    assert len(report["messages"]) == 2
    for message in report["messages"]:
        assert "sft_000002 failed on rank 1: " in message and "rank 0" not in message and "disk full" in message
    assert report["between"] == ["sft_000001"], "the old one stays, the temporary one goes"
    assert report["after"] == ["sft_000003"], "the next save works and prunes to its limit"


def test_what_does_not_train_is_read_once_a_stage(launch: Any, tmp_path: Path) -> None:
    """With LoRA it is the whole model; a change that no stage makes shows that later saves do not read it again."""
    report = result(launch("checkpoint_worker.py", "sums", 1, tmp_path, world=0))
    assert report["after"] != report["before"] and report["found"] == [report["before"]] * 2


def kill_while_saving(start: Any, zero_stage: int, folder: Path, delay: float) -> None:
    """Start a process that saves without pause; SIGKILL it `delay` s into some save after the third."""
    process = start("checkpoint_worker.py", "loop", zero_stage, folder)
    deadline = time.monotonic() + 400  # of a busy machine
    try:
        while not (any(int(p.name[-6:]) >= 3 for p in folder.glob("sft_*")) and list(folder.glob(".tmp-sft_*-*"))):
            assert process.poll() is None, "the saving process died by itself"
            assert time.monotonic() < deadline, "no checkpoint after 400 s"
        time.sleep(delay)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_kill_while_saving_leaves_a_checkpoint_that_loads(launch: Any, start: Any, tmp_path: Path) -> None:
    for zero_stage, delay in enumerate((0.0, 0.002, 0.005, 0.01)):
        kill_while_saving(start, zero_stage, tmp_path / str(zero_stage), delay)
    assert list(tmp_path.glob("*/.tmp-*")), "no kill hit a save in progress: the test did not test"
    for opened in result(launch("checkpoint_worker.py", "open_newest", "0,1,2,3", tmp_path, world=0)):
        assert (
            opened["step"] >= 3 and opened["cursor"] == opened["step"] * 10 and opened["engine_steps"] == opened["step"]
        )


@pytest.fixture(scope="module")
def written(launch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sft_000002, made by two ranks."""
    folder = tmp_path_factory.mktemp("written")
    result(launch("checkpoint_worker.py", "train", 1, folder, world=2))
    return folder


@pytest.fixture
def two(written: Path, tmp_path: Path) -> Path:
    """A copy with an older and a newer checkpoint of the same content."""
    for name in ("sft_000002", "sft_000004"):
        shutil.copytree(written / "sft_000002", tmp_path / name)
    return tmp_path


def test_newest_wins_and_stages_do_not_mix(two: Path) -> None:
    assert resume.find(two, "sft", "auto") == two / "sft_000004"
    assert resume.find(two, "grpo", "auto") is None
    assert resume.find(two / "absent", "sft", "auto") is None


def flip_a_bit(folder: Path) -> None:
    path = next(folder.glob("engine/*optim_states.pt"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "manifest cut in half": (lambda f: os.truncate(f / "manifest.json", 100), "manifest.json"),
    "manifest without files": (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json"),
    "file missing": (lambda f: (f / "rank_0001.pt").unlink(), "rank_0001.pt is missing"),
    "file cut": (lambda f: os.truncate(f / "rank_0000.pt", 10), "has 10 bytes, the manifest says"),
    "bit flipped": (flip_a_bit, "another SHA-256"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_loudly(two: Path, capsys: Any, damage: str) -> None:
    spoil, reason = DAMAGE[damage]
    spoil(two / "sft_000004")
    assert resume.find(two, "sft", "auto") == two / "sft_000002"
    told = capsys.readouterr().err
    assert "sft_000004 is not complete" in told and reason in told
    with pytest.raises(ValueError, match="run.resume: expected auto, never or a complete checkpoint"):
        resume.find(two, "sft", str(two / "sft_000004"))


def test_only_damaged_ones_left_is_an_error_that_names_them(two: Path) -> None:
    flip_a_bit(two / "sft_000002")
    (two / "sft_000004" / "manifest.json").unlink()
    with pytest.raises(
        ValueError, match=r"only damaged ones: .*sft_000004 \(no readable .*sft_000002 \(engine/.*=never"
    ):
        resume.find(two, "sft", "auto")
    assert resume.find(two, "sft", "never") is None
    assert resume.find(two, "grpo", "auto") is None, "the other stage has none: it begins"


def test_resume_choices(two: Path) -> None:
    assert resume.find(two, "sft", "never") is None
    assert resume.find(two, "sft", str(two / "sft_000002")) == two / "sft_000002"
    with pytest.raises(ValueError, match="got nowhere"):
        resume.find(two, "sft", "nowhere")


def test_a_folder_of_one_stage_does_not_make_the_other_begin_anew(two: Path) -> None:
    assert resume.find(two, "grpo", str(two / "sft_000002")) is None
    manifest = json.loads((two / "sft_000004" / "manifest.json").read_text())
    shutil.copytree(two / "sft_000004", two / "grpo_000001")
    (two / "grpo_000001" / "manifest.json").write_text(json.dumps(manifest | {"stage": "grpo", "step": 1}))
    assert resume.find(two, "grpo", str(two / "sft_000002")) == two / "grpo_000001"


def test_checkpoints_of_steps_that_are_done_again_are_set_aside(launch: Any, two: Path) -> None:
    """Else the next start would take them for the newest: with other weights, or damaged."""
    shutil.copytree(two / "sft_000004", two / "sft_000003")
    flip_a_bit(two / "sft_000004")
    manifest = json.loads((two / "sft_000003" / "manifest.json").read_text())
    (two / "sft_000003" / "manifest.json").write_text(json.dumps(manifest | {"step": 3}))
    for folder, left, moved in (("auto", ["2", "3"], ["4"]), (two / "sft_000002", ["2"], ["3"])):
        done = launch("checkpoint_worker.py", "open_newest", 1, two, folder, world=2)
        assert result(done)["step"] == 2, done.stderr  # the state in the file of the copied folder, too
        assert sorted(p.name[-1] for p in two.glob("sft_*")) == left
        assert f"sft_00000{moved[0]} moved to {two}/old_" in done.stderr
    assert sorted(p.name for p in two.glob("old_*/*")) == ["sft_000003", "sft_000004"]
    noted = json.loads((two / resume.WENT_BACK).read_text())
    assert noted == {"folder": str(two / "sft_000002"), "stage": "sft", "step": 2}, "the named one, for later starts"


def test_another_zero_stage_is_refused(launch: Any, written: Path) -> None:
    done = launch("checkpoint_worker.py", "open_newest", 2, written, world=2)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "zero_stage 1, this run has 2" in told[0] and "--run.resume=never" in told[0]
    assert "ValueError" not in done.stderr, "no traceback of ours"


def went_back(root: Path, folder: Path) -> None:
    """What `resume` leaves behind when it went on from a named folder."""
    (root / resume.WENT_BACK).write_text(json.dumps({"folder": str(folder.resolve()), "stage": "sft", "step": 2}))


def test_a_named_folder_that_was_followed_means_what_came_after_it(two: Path, capsys: Any) -> None:
    """Also once it was removed as the oldest one; a second one named is followed anew."""
    named = str(two / "sft_000002")
    went_back(two, Path(named))
    assert resume.find(two, "sft", named) == two / "sft_000004"
    assert "delete" in (told := capsys.readouterr().err) and resume.WENT_BACK in told
    assert resume.find(two, "sft", str(two / "sft_000004")) == two / "sft_000004"
    flip_a_bit(two / "sft_000004")
    assert resume.find(two, "sft", named) == two / "sft_000002", "the newer one is damaged"
    assert resume.find(two, "grpo", named) is None
    shutil.rmtree(two / "sft_000002")
    with pytest.raises(ValueError, match="only damaged ones"):
        resume.find(two, "sft", named)


def test_a_folder_of_a_stage_that_is_done_is_refused(two: Path, tmp_path: Path) -> None:
    """Unless an earlier start went on from it: then the stage is done since."""
    model, named = tmp_path / "hf" / "sft", str(two / "sft_000002")
    assert not resume.is_done(model, two, "sft", named)
    model.mkdir(parents=True)
    (model / "config.json").touch()
    assert resume.is_done(model, two, "sft", "auto") and not resume.is_done(model, two, "sft", "never")
    with pytest.raises(ValueError, match=r"run\.resume: .*sft_000002, but .*hf/sft is there.*another --run\.dir"):
        resume.is_done(model, two, "sft", named)
    went_back(two, Path(named))
    assert resume.is_done(model, two, "sft", named)


def test_a_file_that_only_another_rank_lists_is_in_the_manifest_or_an_error(tmp_path: Path) -> None:
    """A shared disk's listings differ between machines for seconds: one that nobody counts would never be verified."""
    (tmp_path / "engine").mkdir()
    for name in ("engine/a.pt", "b.pt"):
        (tmp_path / name).write_text(name)
    assert sorted(manifest.names(tmp_path)) == ["b.pt", "engine/a.pt"]
    assert sorted(manifest.sync_share(tmp_path, ["b.pt", "engine/a.pt", "b.pt"])) == ["b.pt", "engine/a.pt"]
    with pytest.raises(FileNotFoundError, match=r"c\.pt"):
        manifest.sync_share(tmp_path, ["b.pt", "c.pt"])
