"""OpenRLHF's Actor and PolicyLoss on a small Qwen2-VL: 2 prompts of 3 images, 4 completions each, entropies; forward,
backward. The modules are its own (tests/integrations/hosts/openrlhf.py), with the entropy compiled as it is there."""

from __future__ import annotations

import atexit
from contextlib import ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from univg_fast.integrations import openrlhf

from .dropin_host import SIZES, Step, both, load_host, make_advantages, make_batch
from .rollout import make_model


def problem(size: str) -> tuple[Step, Step]:
    """(OpenRLHF's step, the same with the drop-in)."""
    shape, loader = SIZES[size], load_host("openrlhf")
    stack = ExitStack()
    atexit.register(stack.close)
    host = stack.enter_context(loader.imported(loader.PEERS, Path(stack.enter_context(TemporaryDirectory()))))
    actor = host.actor.Actor(make_model(shape, torch.device("cpu"))[1], temperature=0.9).train()
    actor.packing_samples, actor.is_vlm, actor._vlm_config = False, True, actor.model.config
    inputs, mask = make_batch(shape)
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    given = (inputs["input_ids"], mask, inputs["attention_mask"])
    advantages, loss_of = make_advantages(shape)[:, None].expand(mask.shape), host.loss.PolicyLoss()
    with torch.no_grad():
        old = actor(*given, **images) - 0.1

    def step(drop_in: bool) -> torch.Tensor:
        with openrlhf.patch(actor) if drop_in else nullcontext():
            logp, output = actor(*given, return_output=True, return_entropy=True, **images)
        loss: torch.Tensor = loss_of(logp, old, advantages, action_mask=mask)[0]
        loss = loss - 0.01 * host.loss.aggregate_loss(output.entropy[:, -mask.shape[1] :], mask)
        loss.backward()
        return loss.detach()

    return both(step, actor.model)
