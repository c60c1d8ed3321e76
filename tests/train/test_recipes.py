"""Every recipe trains: two steps of each of its stages, with a small model and small sizes; and says what it should."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from univg_fast.config import load_config, recipe_names

NAMES = [name for name in recipe_names() if name != "demo"]  # which other tests run


@pytest.fixture(scope="module")
def runs(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    done = launch("recipes_worker.py", folder, *NAMES, world=0, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs(name: str, runs: Path) -> None:
    rows = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [
        (stage, step) for stage in load_config(["--config", name]).stages for step in (1, 2)
    ]
    assert all(None not in row.values() for row in rows), "null: what is not finite"


def test_what_makes_a_recipe_that_of_its_paper() -> None:
    dapo, gspo, dr_grpo = (load_config(["--config", name]).grpo for name in ("dapo", "gspo", "dr_grpo"))
    assert (dapo.loss_type, dapo.epsilon_low, dapo.epsilon_high, dapo.beta) == ("dapo", 0.2, 0.28, 0)
    assert dapo.dynamic_sampling_max_draws > 1 and dapo.steps_per_generation > 1
    assert "length" in load_config(["--config", "dapo"]).rewards.terms
    assert (gspo.importance_sampling_level, gspo.epsilon_low, gspo.epsilon_high) == ("sequence", 3e-4, 4e-4)
    assert (dr_grpo.loss_type, dr_grpo.scale_rewards) == ("dr_grpo", "none")
    thinker, mirg = load_config(["--config", "mg_thinker"]), load_config(["--config", "mirg_rl"])
    assert thinker.grpo.dynamic_sampling_max_draws * thinker.grpo.prompts_per_step == 48
    assert (thinker.grpo.num_generations, thinker.grpo.max_completion_length) == (16, 1024)
    assert (thinker.rewards.recipe, mirg.rewards.recipe) == ("mg_thinker", "mirg_rl")
    assert load_config(["--config", "univg_r1_stage2"]).grpo.top_k == 50  # transformers' default, which acted there
