"""Whole runs of TRL's own GRPOTrainer, with and without the drop-in: logged metrics and each step's gradients."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

pytest.importorskip("trl", reason="of the extra [dev]")
from integrations import trl_problem
from integrations.trl_problem import assert_same
from pages import snippets
from trl import GRPOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from univg_fast.integrations.trl import patch

RUNS: dict[str, dict[str, Any]] = {
    "dapo": {"num_iterations": 2, "entropy_coef": 0.01},
    "gspo, adaptive entropy": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "use_adaptive_entropy": True,
        "entropy_target": 3.69,
        "steps_per_generation": 4,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_some_steps_of_its_train(tmp_path: Path, name: str) -> None:
    theirs = trl_problem.run(trl_problem.trainer(tmp_path / "theirs", **RUNS[name]))
    made = trl_problem.trainer(tmp_path / "ours", **RUNS[name])
    with patch(made):
        ours = trl_problem.run(made)
    assert_same(ours, theirs, rtol=5e-5)  # steps add up
    assert len(theirs[0]) == 3 and theirs[0][0]["kl"] > 0


def test_the_snippet_of_the_docs(tmp_path: Path) -> None:
    made, space = trl_problem.trainer(tmp_path, max_steps=1), dict[str, Any]()
    made.reward_func_names[0] = "iou_reward"
    exec(snippets("TRL")[0], space)
    space["train"](made)
    assert 1 < made.state.log_history[0]["difficulty_weight"] < 2.7183
    assert "_compute_loss" not in vars(made)


def test_gmpo(tmp_path: Path) -> None:
    settings = {"cls": GMPOTrainer, "config": GMPOConfig, "num_iterations": 2, "max_steps": 2}
    theirs = trl_problem.run(trl_problem.trainer(tmp_path / "theirs", **settings))
    made = trl_problem.trainer(tmp_path / "ours", **settings)
    with patch(made):
        ours = trl_problem.run(made)
    assert_same(ours, theirs, rtol=5e-5)


def test_phi_of_a_reward_reaches_the_loss(tmp_path: Path) -> None:
    plain = trl_problem.trainer(tmp_path / "theirs", max_steps=2)
    phi = trl_problem.weigh_by_hand(plain)
    theirs = trl_problem.run(plain)
    made = trl_problem.trainer(tmp_path / "ours", max_steps=2)
    with patch(made, phi="iou"):
        logs, gradients = trl_problem.run(made)
    assert [row.pop("difficulty_weight") for row in logs] == pytest.approx([one.mean().item() for one in phi])
    assert all(0 < row.pop("miou") < 1 for row in logs)
    assert_same((logs, gradients), theirs, rtol=5e-5)
    assert all(one.std() > 0.01 for one in phi)


def test_evaluation(tmp_path: Path) -> None:
    made = trl_problem.trainer(tmp_path, num_generations_eval=2)

    def evaluate() -> dict[str, float]:
        transformers.set_seed(5)
        made.evaluate(made.train_dataset)
        return trl_problem.timeless(made.state.log_history[-1])

    theirs = evaluate()
    with patch(made):
        assert evaluate() == pytest.approx(theirs, rel=1e-5, abs=1e-6, nan_ok=True)
    with patch(made, phi="iou"):
        weighed = evaluate()
    trl_problem.weigh_by_hand(made, group=2)
    by_hand = evaluate()
    assert weighed["eval_loss"] == pytest.approx(by_hand["eval_loss"], rel=1e-5)
    assert theirs["eval_kl"] > 0 and abs(by_hand["eval_loss"] - theirs["eval_loss"]) > 1e-3 * abs(theirs["eval_loss"])
    assert 0 < weighed["eval_miou"] < 1 < weighed["eval_difficulty_weight"] < 2.7183


def test_a_qwen2_vl_with_images(tmp_path: Path) -> None:
    from bench.device import Cpu
    from bench.rollout import make_model
    from bench.trl_problem import make_records, make_tokenizer
    from bench.trl_step import SIZES
    from bench.trl_trainer import _Update, make_trainer
    from univg_fast.data.samples import make_processor

    size, runs = SIZES["tiny"], []
    make_model(size, torch.device("cpu"))[1].save_pretrained(tmp_path / "model")
    for name in ("theirs", "ours"):
        folder = tmp_path / name
        folder.mkdir()
        records = make_records(size, folder)
        processor = make_processor(make_tokenizer(size), prompt_template="short")
        transformers.set_seed(5)
        made = make_trainer(size, tmp_path / "model", records, processor, 2, folder / "out", Cpu())
        made.__class__ = GRPOTrainer  # without the clocks of the bench, among them two around methods of the loss
        made.remove_callback(_Update)
        made.args.optim = "sgd"  # AdamW makes whole steps of a gradient's last digit
        made.args.logging_strategy, made.args.logging_steps = transformers.IntervalStrategy.STEPS, 1
        made.state.logging_steps = 1
        with patch(made) if name == "ours" else nullcontext():
            runs.append(trl_problem.run(made))
    patched, (theirs, ours) = made, runs
    assert_same(ours, theirs)
    assert len(theirs[0]) == 2 and len(patched._buffered_inputs[0]["image_grid_thw"]) == size.group * size.images
