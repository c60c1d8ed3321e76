"""Broken files and mistyped keys, through the real command line: what is reported, what is counted, what stops.

tests/data and tests/train/test_config.py try many more mistakes, in process; here the whole program meets each kind.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import univg_fast
from univg_fast.config import load_config
from univg_fast.data.builtin import BuiltinConfig, write_builtin
from univg_fast.train.setup import prepare

TRAINER = Path(univg_fast.__file__).parent
Launcher = Callable[..., "subprocess.CompletedProcess[str]"]
SCAN = {"missing": 1, "json": 1, "count": 1, "box": 1}  # what the scan of each training file finds
CUT = {"sft": 8, "grpo": 3}  # records whose image turns out truncated when it is decoded
GOOD = {"sft": 12, "grpo": 5}
ID = r"(?: \([^()]*\))?"  # of a record, behind its place, where the file gives one


@dataclass
class Files:
    """A folder of data files with every kind of damage. `scanned`, `cut`: use -> places ("path:line")."""

    folder: Path
    scanned: dict[str, list[str]] = field(default_factory=dict)
    cut: dict[str, list[str]] = field(default_factory=dict)

    def arguments(self, run_dir: Path, *more: str) -> list[str]:
        """A model of the smallest kind on these files; a batch of two, so that a bad record can leave a rank empty."""
        uses = [f"--data.{use}=[{self.folder / use}.jsonl]" for use in ("sft", "grpo", "eval")]
        return [
            *("--config=demo", "--data.builtin=null", f"--run.dir={run_dir}", "--pack.budget_tokens=512"),
            *("--sft.max_steps=10", "--sft.per_step_samples=2", "--grpo.max_steps=4", "--grpo.prompts_per_step=2"),
            *("--grpo.num_generations=2", "--grpo.max_completion_length=8", "--evaluate.max_completion_length=4"),
            *uses,
            *more,
        ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = Files(tmp_path_factory.mktemp("data"))
    counts = {use: sum(SCAN.values()) + CUT[use] + GOOD[use] for use in CUT}
    config = BuiltinConfig(image_size=84, lattice=3, object_cells=(1,), images_per_sample=(2, 2), crops=8,
                           num_sft=counts["sft"], num_grpo=counts["grpo"], num_eval=6)  # fmt: skip
    written = write_builtin(made.folder, config)
    for use in ("sft", "grpo"):
        rows = json.loads(written[use].read_text())
        (path := made.folder / f"{use}.jsonl").write_text("\n".join(damaged(rows, use, made)) + "\n")
        places = [f"{path}:{line}" for line in range(1, len(rows) + 1)]
        made.scanned[use], made.cut[use] = places[: sum(SCAN.values())], places[sum(SCAN.values()) :][: CUT[use]]
    rows = json.loads(written["eval"].read_text())
    rows[0]["images"][0] = "images/nowhere.png"
    cut_image(made.folder / rows[1]["images"][1])
    (path := made.folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made.scanned["eval"], made.cut["eval"] = [f"{path}:1"], [f"{path}:2"]
    return made


def damaged(rows: list[dict[str, Any]], use: str, files: Files) -> list[str]:
    """Lines with the mistakes of SCAN first, in that order, then the truncated images."""
    rows[0]["images"][1] = "images/nowhere.png"
    question = rows[2]["conversations"][0] if use == "sft" else rows[2]
    key = "value" if use == "sft" else "question"
    question[key] = "<image>" + question[key]
    if use == "sft":
        target = rows[3]["conversations"][1]
        target["value"] = re.sub(r"<answer>.*", "<answer>(500,100),(500,400)</answer>", target["value"])
    else:
        rows[3]["answer"] = [500, 100, 500, 400]
    for row in rows[4 : 4 + CUT[use]]:
        cut_image(files.folder / row["images"][0])
    lines = [json.dumps(row) for row in rows]
    lines[1] = lines[1][: len(lines[1]) // 2]
    return lines


def cut_image(path: Path) -> None:
    """Half of the file: the header tells the size, the pixels end early."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@dataclass(frozen=True)
class Finished:
    folder: Path
    done: subprocess.CompletedProcess[str]

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        rows = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [row for row in rows if row["stage"] == stage]


@pytest.fixture(scope="module")
def survived(files: Files, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Both stages over one epoch on two ranks, with the bound on bad records out of the way.

    ZeRO 2, where the ranks must make equally many backward passes whatever happens to their records.
    """
    folder = tmp_path_factory.mktemp("survived")
    more = ("--data.max_bad_fraction=0.5", "--deepspeed.zero_stage=2")
    done = launcher(*files.arguments(folder, *more), ranks=2)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return Finished(folder, done)


@pytest.mark.slow
@pytest.mark.parametrize("use", ["sft", "grpo", "eval"])
def test_the_scan_reports_each_bad_record_with_file_and_line(survived: Finished, files: Files, use: str) -> None:
    report = survived.read("data_report.json")[use]
    assert report["kinds"] == (SCAN if use != "eval" else {"missing": 1})
    assert [entry["source"] for entry in report["bad"]] == files.scanned[use]
    for entry in report["bad"]:
        assert re.match(rf"{re.escape(entry['source'])}{ID}: ", entry["message"])
        assert f"skipped {entry['message']}\n" in survived.done.stderr
    assert f"data.{use}: {report['good']} records of" in survived.done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_truncated_images_are_skipped_told_once_and_counted(survived: Finished, files: Files, stage: str) -> None:
    rows = survived.metrics(stage)
    assert sum(row["bad_records"] for row in rows) == CUT[stage], "one epoch: each is met once"
    assert {row["bad_records"] for row in rows} >= {0, 1}, "with 1, one of the two ranks had nothing to train on"
    assert all(abs(row["loss"]) < 100 for row in rows), "NaN fails, too"
    for place in files.cut[stage]:
        assert len(re.findall(rf"rank \d: skipped {re.escape(place)}{ID}: cannot decode", survived.done.stderr)) == 1
    told = [json.loads(line) for line in (survived.folder / "bad_records.jsonl").read_text().splitlines()]
    assert sorted(row["source"] for row in told if row["stage"] == stage) == sorted(files.cut[stage])
    assert all(row["kind"] == "decode" and row["uid"] and row["uid"] in row["message"] for row in told)
    assert (survived.folder / "hf" / stage / "config.json").is_file()


@pytest.mark.slow
def test_a_truncated_held_out_image_counts_as_a_miss(survived: Finished, files: Files) -> None:
    for name in ("before", "sft", "grpo"):
        summary = survived.read(f"eval/{name}.json")
        assert summary["n"] == 5
        assert [re.split(rf"{ID}: ", message)[0] for message in summary["bad_records"]] == files.cut["eval"]


@pytest.mark.slow
def test_too_many_found_by_the_scan(files: Files, launcher: Launcher, tmp_path: Path) -> None:
    done = launcher(*files.arguments(tmp_path))
    assert done.returncode not in (0, 2)
    total = len(files.scanned["sft"]) + CUT["sft"] + GOOD["sft"]
    assert f"4 of {total} records in {files.folder / 'sft.jsonl'} are bad" in done.stderr
    assert "more than data.max_bad_fraction=0.01" in done.stderr
    assert all(re.search(rf"  {re.escape(place)}{ID}: ", done.stderr) for place in files.scanned["sft"])
    assert "Traceback" not in done.stderr, "a user's mistake has none"
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_too_many_found_while_training(files: Files, launcher: Launcher, tmp_path: Path) -> None:
    """Two ranks, each of which meets some of the bad ones: both stop, none waits for the other."""
    clean = files.folder / "clean_scan.jsonl"
    lines = (files.folder / "sft.jsonl").read_text().splitlines(keepends=True)
    clean.write_text("".join(lines[4:]))
    rest = ("--data.grpo=[]", "--data.eval=[]", "--stages=[sft]")
    done = launcher(*files.arguments(tmp_path, f"--data.sft=[{clean}]", *rest), ranks=2)
    assert done.returncode not in (0, 2)
    assert re.search(r"error: data\.max_bad_fraction: 2 of \d+ records .* allowed fraction 0\.01", done.stderr)
    assert len(re.findall(rf"rank \d: skipped {re.escape(str(clean))}:\d+{ID}: cannot decode", done.stderr)) == 2
    assert str(TRAINER) not in done.stderr, "no traceback of ours; the one that torchrun adds is its own"
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("\nsft:\n  learning_rte: 1e-3\n", "", "{file}:3: unknown key 'sft.learning_rte'; "
                                                "did you mean 'sft.learning_rate'?"),
        ("grpo:\n  max_steps: many\n", "", "{file}:2: grpo.max_steps: expected an int or null, got 'many'"),
        ("", "--grpo.num_generation=4", "argument --grpo.num_generation=4: unknown key 'grpo.num_generation'; "
                                        "did you mean 'grpo.num_generations'?"),
        ("", "--stages=[stf]", "argument --stages=[stf]: stages: expected a list from sft, grpo, got '[stf]'"),
    ],
    ids=["key in YAML", "type in YAML", "key on the command line", "type on the command line"],
)  # fmt: skip
def test_a_wrong_configuration(launcher: Launcher, tmp_path: Path, text: str, argument: str, message: str) -> None:
    """One line that says all, exit code 2, and nothing begun; in a second, before torch is loaded."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    arguments = [f"--config={path}", f"--run.dir={tmp_path / 'run'}", *filter(None, [argument])]
    done = launcher(*arguments, timeout=400)
    assert done.returncode == 2
    assert done.stderr == "error: " + message.format(file=path) + "\n"
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.path=nowhere", r"model\.path: expected a local folder .*qwen2_vl_tiny.*, got 'nowhere'"),
        ("--rewards.terms.lenght=1", r"rewards\.terms: expected some of iou, format, .*, got iou, format, lenght"),
    ],
)
def test_what_a_late_stage_needs_is_refused_before_anything_is_made(
    tmp_path: Path, argument: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(load_config(["--config", "demo", argument]), tmp_path)
    assert not list(tmp_path.iterdir())
