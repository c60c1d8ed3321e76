"""ms-swift's loss on a small Qwen2-VL: 2 prompts of 3 images, 4 completions each, entropies logged; forward, backward.

Its methods run as they are in the wheel, on an object of ours (tests/integrations/hosts/ms_swift.py).
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import torch

from univg_fast.integrations import ms_swift

from .dropin_host import SIZES, Step, both, load_host, make_advantages, make_batch
from .rollout import make_model


def problem(size: str) -> tuple[Step, Step]:
    """(ms-swift's step, the same with the drop-in)."""
    shape, host = SIZES[size], load_host("ms_swift")
    sys.path.append(str(host.PEERS))  # where the installed version is found; last, as others lie there
    model = make_model(shape, torch.device("cpu"))[1].train()
    trainer = host.make_trainer(model)
    inputs, mask = make_batch(shape)
    batch = SimpleNamespace(
        completion_mask=mask.bool(),
        truncated_mask=torch.zeros(len(mask), dtype=torch.bool),
        seq_lengths=inputs["attention_mask"].sum(1),
        logits_to_keep=mask.shape[1],
        rollout_per_token_logps=None,
        num_items_in_batch=mask.sum(),
        advantages=make_advantages(shape)[:, None].expand(mask.shape),
        teacher_per_token_logps=None,
        old_per_token_logps=None,
    )
    with torch.no_grad():
        batch.ref_per_token_logps = trainer._get_per_token_logps_and_entropies(model, dict(inputs), batch)[0] - 0.1

    def step(drop_in: bool) -> torch.Tensor:
        with ms_swift.patch(trainer) if drop_in else nullcontext():
            loss: torch.Tensor = trainer.compute_loss(model, {"model_inputs": dict(inputs), "grpo_batch": batch})
        loss.backward()
        return loss.detach()

    return both(step, model)
