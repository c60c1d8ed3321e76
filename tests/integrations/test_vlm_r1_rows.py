"""The VLM-R1 drop-in's shared rows: what is computed once, what is kept and for how long, and under ZeRO 3."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.vlm_r1_problem import make_trainer
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from univg_fast.integrations import rows, vlm_r1


def test_a_prompt_is_computed_once_and_only_completions_meet_the_vocabulary(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, beta=0.0), list[tuple[int, int]]()
    text, head, visual = trainer.model.model.language_model, trainer.model.lm_head, trainer.model.model.visual
    with vlm_r1.patch(trainer):
        inputs = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4, trainer.model)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        norm = text.norm.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape[:2])))
        patches = visual.patch_embed.register_forward_hook(lambda _, args, __: seen.append((0, len(args[0]))))
        scored = head.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
        trainer._get_per_token_logps(trainer.model, ids, mask, **inputs["multimodal_inputs"])
    for hook in (norm, patches, scored):
        hook.remove()
    completions, item = int(inputs["completion_mask"].sum()), trainer.train_dataset[0]
    assert seen == [(0, len(item["pixel_values"])), (1, len(item["prompt"]) + completions), (completions, 2)]


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """Something of each row that has been laid out."""
    found, share = list[weakref.ref[Tensor]](), rows.share_prompts

    def counted(*args: Any) -> Any:
        row = share(*args)
        found.append(weakref.ref(row.rows))
        return row

    monkeypatch.setattr(rows, "share_prompts", counted)
    return found


def test_a_batch_is_laid_out_once_and_then_forgotten(tmp_path: Path, laid_out: list[weakref.ref[Tensor]]) -> None:
    """Old policy, reference, and the policy in both iterations; two batches an optimizer step."""
    own = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 4}
    trainer = make_trainer(tmp_path, **own)
    with vlm_r1.patch(trainer):
        trainer.train()
        assert len(laid_out) == 4
        gc.collect()
        assert [row() for row in laid_out] == [None] * 4
        trainer.model.eval()
        trainer._step, trainer.state.global_step = 0, 0
        with torch.no_grad():
            trainer.compute_loss(trainer.model, [trainer.train_dataset[0]] * 4)
        gc.collect()
        assert len(laid_out) > 4 and not any(row() is not None for row in laid_out), "an evaluation keeps none"


def test_what_changes_in_place_is_seen(tmp_path: Path, laid_out: list[weakref.ref[Tensor]]) -> None:
    trainer = make_trainer(tmp_path, num_iterations=2)
    model, host = trainer.model, type(trainer)._get_per_token_logps
    with vlm_r1.patch(trainer), torch.no_grad():
        inputs = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4, model)
        start, images = inputs["prompt_ids"].shape[1], inputs["multimodal_inputs"]
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        pixels, grids = images["pixel_values"], images["image_grid_thw"]
        changes = [
            lambda: None,
            lambda: ids[1, start:].fill_(77),
            lambda: mask[2, start + 1 :].fill_(0),
            lambda: pixels.mul_(-1),
            lambda: grids[1::3].copy_(grids[1::3, [0, 2, 1]]),  # 6 x 4 patches become 4 x 6
        ]
        before = torch.zeros(len(ids), ids.shape[1] - start)
        for change, layouts in zip(changes, (1, 2, 3, 3, 4), strict=True):
            change()
            ours = trainer._get_per_token_logps(model, ids, mask, **images)[:, start - 1 :]
            theirs = host(trainer, model, ids, mask, **images)[:, start - 1 :]
            seen = mask[:, start:].bool()
            torch.testing.assert_close(ours[seen], theirs[seen], rtol=1e-5, atol=1e-5)
            assert not torch.equal(ours, before) and len(laid_out) == layouts
            before = ours


def test_a_row_of_a_reference_in_inference_mode_is_one_for_training(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, num_iterations=2)
    with vlm_r1.patch(trainer):
        inputs = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4, trainer.model)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"].flip(0)], 1)  # a batch that is not kept yet
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"].flip(0)], 1)
        with torch.inference_mode():
            trainer._get_per_token_logps(trainer.model, ids, mask, **inputs["multimodal_inputs"])
        trainer._get_per_token_logps(trainer.model, ids, mask, **inputs["multimodal_inputs"]).sum().backward()
    assert trainer.model.lm_head.weight.grad.abs().max() > 0


def test_prompts_that_differ_are_not_shared(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, beta=0.0)
    mixed = [trainer.train_dataset[i % 2] for i in range(8)]
    with vlm_r1.patch(trainer), pytest.raises(ValueError, match="sequences 0 and 1 must have one prompt"):
        trainer.compute_loss(trainer.model, mixed)
    theirs = make_trainer(tmp_path, beta=0.0)
    torch.manual_seed(5)
    with vlm_r1.patch(trainer, shared_prefix=False):
        loss = trainer.compute_loss(trainer.model, mixed)
    torch.manual_seed(5)
    assert loss.item() == pytest.approx(theirs.compute_loss(theirs.model, mixed).item(), rel=1e-5, abs=1e-6)


def test_no_attention_stays_in_the_table_of_transformers(tmp_path: Path) -> None:
    trainer, before = make_trainer(tmp_path), list(ALL_ATTENTION_FUNCTIONS)
    with vlm_r1.patch(trainer):
        trainer.compute_loss(trainer.model, [trainer.train_dataset[0]] * 4).backward()
    assert list(ALL_ATTENTION_FUNCTIONS) == before


@pytest.mark.slow
def test_under_zero_3_the_output_embedding_is_gathered_for_the_scores(python_launcher: Any) -> None:
    """UniVG-R1 trains under ZeRO 3: two ranks, weights in parts, checkpointed layers; loss and gradients stay."""
    done = python_launcher(str(Path(__file__).with_name("hosts") / "zero3_worker.py"), ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"worst"')]
    assert json.loads(line)["worst"] < 1e-5
