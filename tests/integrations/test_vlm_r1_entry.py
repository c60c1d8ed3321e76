"""The VLM-R1 drop-in is put back, and refuses what it cannot follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from integrations.vlm_r1_problem import make_trainer

from univg_fast.integrations import vlm_r1


def test_everything_is_put_back(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    parts = [trainer, trainer.model, trainer.ref_model, *trainer.model.modules()]
    before = [dict(vars(part)) for part in parts]
    functions = list(trainer.reward_funcs)
    with vlm_r1.patch(trainer, phi="iou_reward"):
        assert vars(trainer) != before[0]
        with pytest.raises(ValueError, match="patched already"):
            vlm_r1.patch(trainer)
        assert "_get_per_token_logps" in vars(trainer), "a refused patch undoes only its own"
    assert [dict(vars(part)) for part in parts] == before
    assert trainer.reward_funcs == functions
    assert trainer.model.config.get_text_config()._attn_implementation == "sdpa"


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, num_iterations=2)
    with pytest.raises(ValueError, match="iou_reward, length_reward"):
        vlm_r1.patch(trainer, phi="accuracy")
    with pytest.raises(ValueError, match="num_iterations"):
        vlm_r1.patch(trainer, phi="iou_reward", difficulty="log")
    with pytest.raises(ValueError, match="difficulty must be one of"):
        vlm_r1.patch(trainer, phi="iou_reward", difficulty="hard")
    trainer.args.miou_adjust = True
    with pytest.raises(ValueError, match="miou_adjust"):
        vlm_r1.patch(trainer, phi="iou_reward")
    with vlm_r1.patch(trainer), pytest.raises(ValueError, match=r"model\.generate"):
        trainer._get_per_token_logps(trainer.model, torch.ones(4, 9, dtype=torch.int64), torch.ones(4, 9))
    trainer._get_per_token_logps = lambda model, ids: ids
    with pytest.raises(ValueError, match="attention_mask"):
        vlm_r1.patch(trainer)


def test_a_model_whose_prompts_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    text = trainer.model.config.get_text_config()
    text.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"attention_dropout must be 0 to share prompts, got 0\.1"):
        vlm_r1.patch(trainer)
    text.attention_dropout = 0.0
    trainer.model.config.model_type = "internvl"
    with pytest.raises(ValueError, match="qwen3_vl, got internvl; pass shared_prefix=False"):
        vlm_r1.patch(trainer)


def test_an_output_embedding_that_is_not_plain_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    head = trainer.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().to(torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"floating-point weight, got torch\.uint8"):
        vlm_r1.patch(trainer)
    trainer = make_trainer(tmp_path, beta=0.0)
    trainer.model.register_forward_hook(lambda _, __, output: setattr(output, "logits", output.logits * 0.5))
    with vlm_r1.patch(trainer), pytest.raises(ValueError, match="changes what its output embedding makes"):
        trainer.compute_loss(trainer.model, [trainer.train_dataset[0]] * 8)
