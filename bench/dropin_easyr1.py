"""EasyR1's actor on a small Qwen2-VL with images: log-probabilities and loss of one micro-batch, forward and backward.

EasyR1 is on no registry: the actor is the minimal one that the tests stand on (tests/integrations/hosts/easyr1.py), in
its padding_free way. As EasyR1's own it makes the logits of every token, prompts and images included.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from univg_fast.integrations import easyr1
from univg_fast.integrations.patching import Patch

from .dropin_host import Step
from .rollout import Size, make_model

HOST = Path(__file__).resolve().parents[1] / "tests" / "integrations" / "hosts" / "easyr1.py"
SIZES = {
    "default": Size(prompts=1, images=1, group=4, tokens=64, side=14, hidden=256, layers=2, vocab=32_000),
    "tiny": Size(prompts=1, images=1, group=2, tokens=4, side=4, text=20, hidden=64, layers=1, vocab=300),
}


def problem(size: str) -> tuple[Step, Step]:
    """(the host's step, the same with the drop-in)."""
    host, shape = load_host(), SIZES[size]
    model: Any = make_model(shape, torch.device("cpu"))[1]
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    model.train()
    config = host.ActorConfig(use_kl_loss=False)
    actor = host.DataParallelPPOActor(config, model, torch.optim.SGD(model.parameters(), lr=0.0))
    batch = make_batch(shape, model.config)
    with torch.no_grad():
        logp = actor._forward_micro_batch(batch, temperature=0.9)
    old = logp + 0.2 * torch.randn(logp.shape, generator=torch.Generator().manual_seed(1))
    names = ("clip_ratio_low", "clip_ratio_high", "clip_ratio_dual", "tau_positive", "tau_negative")
    settings = {name: getattr(config, name) for name in (*names, "loss_type", "loss_avg_mode")}
    mask, advantages = torch.ones_like(old), torch.linspace(-1, 1, len(old))[:, None].expand(old.shape)

    def step() -> Tensor:
        logp = actor._forward_micro_batch(batch, temperature=0.9)
        given = {"old_log_probs": old, "log_probs": logp, "advantages": advantages, "response_mask": mask}
        loss = host.compute_policy_loss(**given, **settings)[0]
        loss.backward()
        return loss.detach()

    def ours() -> Tensor:
        with Patch() as patch:
            patch.replace(host, "compute_policy_loss", easyr1.policy_loss)
            patch.replace(host.DataParallelPPOActor, "_forward_micro_batch", easyr1.forward_micro_batch)
            return step()

    weights = tuple(model.parameters())
    return Step(step, weights), Step(ours, weights)


def load_host() -> Any:
    spec = importlib.util.spec_from_file_location("easyr1_host", HOST)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_batch(shape: Size, config: Any) -> dict[str, Any]:
    """G sequences of a text, an image and a response, all tokens random."""
    g = torch.Generator().manual_seed(0)
    image = shape.side**2 // config.vision_config.spatial_merge_size**2
    length = shape.text + image + shape.tokens
    ids = torch.randint(10, shape.vocab - 10, (shape.group, length), generator=g)
    ids[:, 1 : 1 + image] = config.image_token_id
    vision = config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(length).expand(shape.group, 4, length),
        "responses": ids[:, -shape.tokens :],
        "multi_modal_inputs": [
            {
                "pixel_values": torch.randn(shape.side**2, width, generator=g),
                "image_grid_thw": torch.tensor([[1, shape.side, shape.side]]),
            }
            for _ in range(shape.group)
        ],
    }
