"""AdamW's groups, its schedules, and where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from univg_fast.config import OptimConfig
from univg_fast.train import optimizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
from engine_problem import TinyLM  # noqa: E402


def test_schedule_ends_and_shapes() -> None:
    linear = optimizer.learning_rate_factor(OptimConfig(lr_scheduler_type="linear", warmup_ratio=0.2), 10)
    assert [linear(s) for s in (0, 1, 2, 6, 10, 99)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0, 0.0])
    constant = optimizer.learning_rate_factor(OptimConfig(lr_scheduler_type="constant"), 10)
    assert [constant(s) for s in (0, 5, 99)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("cosine", {}), ("linear", {}), ("constant_with_warmup", {}), ("cosine_with_min_lr", {"min_lr_rate": 0.1})],
)
def test_schedules_are_transformers_after_the_warm_up(name: Any, kwargs: dict[str, float]) -> None:
    ours = optimizer.learning_rate_factor(OptimConfig(lr_scheduler_type=name, warmup_ratio=0.2, min_lr_rate=0.1), 20)
    theirs_of = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = transformers.get_scheduler(name, theirs_of, 4, 20, scheduler_specific_kwargs=kwargs)
    for step in range(20):
        want = theirs.get_last_lr()[0] + (0.25 if step < 4 else 0.0)  # theirs begins with a step of rate 0
        assert ours(step) == pytest.approx(want), step
        theirs_of.step()
        theirs.step()


def test_weight_decay_on_trainable_matrices_only_and_bounded_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TinyLM()
    monkeypatch.setattr(optimizer, "GROUP_ELEMENTS", 300)  # the embedding has 512, the hidden matrix 256
    groups = optimizer.parameter_groups(module, 0.1)
    body = module.body
    assert [g["weight_decay"] for g in groups] == [0.1, 0.1, 0.0]
    assert [len(g["params"]) for g in groups] == [1, 1, 3]
    assert groups[0]["params"][0] is body.embed.weight and groups[1]["params"][0] is body.hidden.weight


def test_an_optimizer_that_cannot_be_compiled_says_what_to_set(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom univg_fast import distributed\nfrom univg_fast.config import OptimConfig\n"
        "from univg_fast.train.optimizer import make_optimizer\ndistributed.init()\n"
        "groups = [{'params': [torch.nn.Parameter(torch.zeros(4, 4))]}]\n"
        "offload = {'zero_optimization': {'offload_optimizer': {'device': 'cpu'}}}\n"
        "made = make_optimizer(groups, OptimConfig(), offload | {'zero_force_ds_cpu_optimizer': False})\n"
        "assert type(made) is torch.optim.AdamW\nmake_optimizer(groups, OptimConfig(), offload)\n"
    )
    nowhere = {"PATH": str(tmp_path), "CXX": str(tmp_path / "g++"), "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    environment = os.environ | nowhere | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 1
    assert f"a build was killed and left {tmp_path / 'cpu_adam' / 'lock'}, which" in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert "ValueError: deepspeed.config: zero_optimization.offload_optimizer wants DeepSpeedCPUAdam" in last
    assert "deepspeed.config.zero_force_ds_cpu_optimizer=false" in last
