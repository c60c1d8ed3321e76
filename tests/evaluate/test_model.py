"""With a model: the same result file for any batch size and number of ranks, and after a kill in the middle."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from univg_fast.evaluate.items import Item
from univg_fast.evaluate.journal import Journal
from univg_fast.evaluate.predictions import Prediction

ASK = ["--evaluate.max_completion_length=12", "--data.prompt_template=short"]


SELF_KILLED = """
import os, runpy, signal, sys
from univg_fast.evaluate.journal import Journal
number, add, added = int(sys.argv[1]), Journal.add, []
def add_and_die(journal, batch):
    add(journal, batch)
    added.append(batch)
    if len(added) == number:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.add = add_and_die
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""  # after so many batches, wherever the clock stands


def words(small: Path, out: Path, *more: str) -> list[Any]:
    given = ["--benchmark", "records", "--data", small / "data" / "eval.json", "--model", small / "model"]
    return ["-m", "univg_fast.evaluate", *given, "--out", out, *ASK, *more]


def files(out: Path) -> tuple[dict[str, Any], str]:
    return json.loads((out / "results.json").read_text()), (out / "rows.jsonl").read_text()


@pytest.mark.slow
def test_one_result_for_any_batch_any_ranks_and_after_kill_9(launch: Any, small: Path, tmp_path: Path) -> None:
    whole = launch(*words(small, tmp_path / "whole", "--evaluate.prompts_per_batch=8"))
    assert whole.returncode == 0, whole.stderr[-3000:]
    want = files(tmp_path / "whole")
    assert want[0]["n"] == 8 and want[0]["generation"]["max_new_tokens"] == 12
    texts = [json.loads(line)["text"] for line in want[1].splitlines()]
    assert len(set(texts)) > 1, "a model that says the same to everything proves nothing here"

    killed = tmp_path / "killed"
    journal, before = killed / "answers.0.jsonl", 4
    module, *rest = words(small, killed, "--evaluate.prompts_per_batch=1")[1:]
    done = launch("-c", SELF_KILLED, before, module, *rest)
    assert done.returncode == -signal.SIGKILL and not (killed / "results.json").exists(), done.stderr[-3000:]
    content = journal.read_bytes()
    assert content.count(b"\n") - 1 == before
    journal.write_bytes(content + b'{"uid": "half a li')
    again = launch(*words(small, killed), ranks=2)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"going on after {before} of 8 answers" in again.stdout
    assert files(killed) == want
    assert journal.read_bytes().startswith(content)


def test_answers_of_other_settings_are_not_mixed_and_nobody_else_writes(tmp_path: Path) -> None:
    first = Journal(tmp_path, {"max_new_tokens": 12})
    first.open(0)
    first.add([(Item("a", "f:1", "t"), Prediction("x\n\u2028y", None, 2, None, ((3, 4),)))])
    with pytest.raises(ValueError, match="another process is evaluating"):
        Journal(tmp_path, {"max_new_tokens": 12}).open(0)
    first.close()
    assert Journal(tmp_path, {"max_new_tokens": 12}).answers == first.answers
    with pytest.raises(ValueError, match=r"answers\.0\.jsonl.*other settings \(max_new_tokens was 12\)"):
        Journal(tmp_path, {"max_new_tokens": 9})


def test_what_could_not_be_asked_is_asked_again(tmp_path: Path) -> None:
    """As after a wrong --image-root; but answers about other images are not mixed in."""
    gone, seen = Prediction(error="a.png: no such file"), Prediction("x", None, 2)
    wrong = Journal(tmp_path, {"image_root": "/wrong"})
    wrong.open(0)
    wrong.add([(Item("a", "f:1", "t"), gone)])
    wrong.close()
    right = Journal(tmp_path, {"image_root": "/right"})
    assert right.answers == {}
    right.open(0)
    right.add([(Item("a", "f:1", "t"), seen), (Item("b", "f:2", "t"), gone)])
    right.close()
    assert Journal(tmp_path, {"image_root": "/right"}).answers == {"a": seen}
    with pytest.raises(ValueError, match="image_root was '/right'"):
        Journal(tmp_path, {"image_root": "/wrong"})
