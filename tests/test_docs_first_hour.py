"""A new user's first hour: the commands of README and quick start, one after another, on a CPU."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pages import DESK, ROOT, blocks

from univg_fast.config import load_config
from univg_fast.data.builtin import write_builtin
from univg_fast.data.prompts import corpus
from univg_fast.data.records import read_records
from univg_fast.data.samples import make_processor
from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.model import load_model

# One process for all of them, as imports take longer than most; `python -m` is what runpy does.
RUNNER = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    print(">>>", *words, flush=True)
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where `make demo` was: data like the demo's, but less of it, and a model that was not trained."""
    folder = tmp_path_factory.mktemp("desk")
    run, config = folder / "runs" / "demo", load_config(["--config", "demo"]).data.builtin
    assert config is not None
    files = write_builtin(run / "data", replace(config, crops=8, num_sft=16, num_grpo=8, num_eval=14))
    tokenizer = build_tokenizer(corpus(read_records(files["sft"])[0]))
    load_model("qwen2_vl_tiny", vocab=tokenizer.get_vocab(), seed=3).save_pretrained(run / "hf" / "grpo")
    tokenizer.save_pretrained(run / "hf" / "grpo")
    make_processor(tokenizer).image_processor.save_pretrained(run / "hf" / "grpo")
    (run / "config.yaml").write_text((ROOT / "univg_fast" / "recipes" / "demo.yaml").read_text())
    (configuration,) = (block for block in blocks("yaml") if block.place.startswith("docs/quickstart.md"))
    (folder / "mine.yaml").write_text(configuration.text)
    return folder


@pytest.mark.slow
def test_the_commands_of_the_first_hour(desk: Path) -> None:
    """In their order, as they stand there; those of training in one process instead of torchrun's."""
    words = [shlex.split(command) for _, command in DESK]
    modules = [given[given.index("-m") + 1 :] for given in words]
    ran = {given[0].removeprefix("univg_fast.") for given in modules}
    assert ran == {"data", "cot", "check", "train", "evaluate", "report", "predict"} and len(modules) > 10
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": paths}
    command = [sys.executable, "-c", RUNNER, json.dumps(modules)]
    done = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.count(">>>") == len(modules) and "dry run: fine; nothing was saved" in done.stdout
    told = ["boxes.png", "runs/demo/again/report.html", "runs/traces.jsonl", "runs/mine/check/check.html"]
    told += ["runs/mine/report.html", "runs/mine/hf/grpo/config.json", "runs/mine/held_out/results.json"]
    assert [path for path in (*told, "runs/compared.html") if not (desk / path).is_file()] == []
