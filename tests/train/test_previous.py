"""A folder holds one run: another configuration is refused by its keys, a fresh start moves the old one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from univg_fast.config import Config, config_hash, load_config, to_yaml
from univg_fast.train.previous import settle, take


def given(folder: Path, *arguments: str) -> Config:
    return load_config(["--config", "demo", f"--run.dir={folder}", *arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(to_yaml(given(tmp_path)))
    (tmp_path / "hf" / "sft").mkdir(parents=True)
    (tmp_path / "hf" / "sft" / "config.json").touch()
    return tmp_path


def test_the_same_configuration_goes_on(folder: Path) -> None:
    settle(given(folder), folder)
    settle(given(folder, "--run.max_steps=5", "--log.steps=3", "--stages=[sft]"), folder)
    assert (folder / "hf" / "sft").is_dir()


def test_another_configuration_is_refused_by_key(folder: Path) -> None:
    """And only by those that matter: of a stage that is done, its optimizer's, too."""
    with pytest.raises(ValueError, match=r"\(run\.seed was 42, is 1; sft\.learning_rate was 0\.002, is 0\.1\).*=never"):
        settle(given(folder, "--run.seed=1", "--sft.learning_rate=0.1", "--grpo.learning_rate=0.1"), folder)


def test_what_the_messages_advise_is_accepted(folder: Path) -> None:
    """After a step that did not fit the memory, or diverged (crash.py, docs/reliability.md), also from a checkpoint."""
    free = ["--rollout.cache_gib=1", "--model.gradient_checkpointing=true", "--data.num_workers=1"]
    free += ["--data.max_bad_fraction=0.5"]
    assert settle(given(folder, *free), folder) == []
    numbers = {"pack.budget_tokens": 64, "data.max_length": 99, "data.max_pixels": 9999, "deepspeed.zero_stage": 3}
    numbers |= {"grpo.learning_rate": 0.1, "grpo.max_grad_norm": 0.5}
    told = settle(given(folder, "--run.resume=ckpt/x", *(f"--{k}={v}" for k, v in numbers.items())), folder)
    assert [line.split(" was ")[0] for line in told] == sorted(numbers)
    assert all(line.endswith(f"is {numbers[line.split(' was ')[0]]}") for line in told)


def test_stages_are_added_and_left_out_at_the_end_only(folder: Path) -> None:
    """Else GRPO would begin from, and be held to, another model than the one that the run's sft made."""
    for other in ("[grpo]", "[grpo, sft]"):
        with pytest.raises(ValueError, match=r"\(stages was \['sft', 'grpo'\], is \['grpo'.*only the last ones may"):
            settle(given(folder, f"--stages={other}"), folder)
    (folder / "config.yaml").write_text(to_yaml(given(folder, "--stages=[sft]")))
    assert settle(given(folder, "--stages=[sft, grpo]"), folder) == []


def test_only_what_decides_no_number_is_outside_of_the_hash(folder: Path) -> None:
    free = ("--rollout.cache_gib=1", "--save.steps=9", "--stages=[sft]")
    hashes = {config_hash(given(folder, *arguments)) for arguments in ((), free)}
    assert len(hashes) == 1
    assert config_hash(given(folder, "--pack.budget_tokens=64")) not in hashes


@pytest.mark.parametrize("text", ["", "run: {dir: x", "just words"])
def test_a_configuration_that_was_cut_is_named(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml: expected the configuration.*Delete the file"):
        settle(given(folder), folder)


def test_never_moves_the_old_run_aside(folder: Path) -> None:
    config = given(folder, "--run.seed=1")
    for number in (1, 2):
        settle(replace(config, run=replace(config.run, resume="never")), folder)
        assert (folder / f"old_{number}" / "hf").is_dir() and not (folder / "hf").exists()
        assert sorted(path.name for path in folder.iterdir()) == [f"old_{n + 1}" for n in range(number)]
        (folder / "hf").mkdir()


def test_never_moves_what_belongs_to_the_old_run_with_it(folder: Path) -> None:
    """Its configuration, which export, evaluation and report read; a folder with nothing else in it stays as it is."""
    beside = ["bad_records.jsonl", "config.yaml", "data_report.json", "env.json"]
    for name in beside:
        (folder / name).touch()
    (folder / "mine.txt").touch()
    never = given(folder, "--run.resume=never")
    settle(never, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["mine.txt", "old_1"]
    assert sorted(path.name for path in (folder / "old_1").iterdir()) == [*beside, "hf"]
    (folder / "config.yaml").touch()
    settle(never, folder)
    assert (folder / "config.yaml").exists() and not (folder / "old_2").exists()


HOLDER = """
import sys; from pathlib import Path; from univg_fast.train.previous import take
held = take(Path(sys.argv[1]))
print("taken", flush=True)
sys.stdin.read()
"""


def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    """The second one is refused and told who the first is; after a SIGKILL nothing is in the way."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "taken\n"
        with pytest.raises(
            ValueError, match=rf"another process is training into .*process {first.pid} on .*--run\.dir"
        ):
            take(tmp_path / "run")
        first.kill()
    take(tmp_path / "run").close()
