"""The yardstick of `bench.step`: transformers' own model on separate sequences, with the loss in plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from univg_fast.model.patches import repeat_frames

from .rollout import IMAGE
from .step_problem import CONFIG, Problem


def eager_loss(logp: torch.Tensor, ref_logp: torch.Tensor, advantages: torch.Tensor, weight: torch.Tensor) -> Any:
    """The GRPO loss of tokens [N] in plain torch, as a sum with `weight` each; on policy, so the ratio is 1."""
    ratio, difference = (logp - logp.detach()).exp(), ref_logp - logp
    clipped = ratio.clamp(1 - CONFIG.epsilon_low, 1 + CONFIG.epsilon_high)
    policy = -torch.minimum(ratio * advantages, clipped * advantages)
    return ((policy + CONFIG.beta * (difference.exp() - difference - 1)) * weight).sum()


def separate(p: Problem) -> torch.Tensor:
    """As trainers do it today: a batch of G whole sequences for each prompt, with G copies of its pixels."""
    total = p.advantages.new_zeros(())
    for group, advantages in zip(p.groups, p.advantages, strict=True):
        sample, copies = group.sample, len(group.responses)
        ids = np.stack([np.concatenate([sample.prompt_ids, r]) for r in group.responses])
        responses = torch.from_numpy(np.stack(group.responses)).to(p.plain.device)
        pixels = repeat_frames(torch.from_numpy(sample.pixel_values), 2).repeat(copies, 1)
        batch = {
            "input_ids": torch.from_numpy(ids),
            "mm_token_type_ids": torch.from_numpy(ids == IMAGE).int(),
            "pixel_values": pixels.to(p.plain.dtype),
            "image_grid_thw": torch.from_numpy(sample.image_grid_thw).repeat(copies, 1),
        }
        batch = {name: x.to(p.plain.device) for name, x in batch.items()}

        def logp(model: Any, batch: Any = batch, responses: torch.Tensor = responses) -> torch.Tensor:
            logits = model(**batch, use_cache=False, logits_to_keep=responses.shape[1] + 1).logits[:, :-1]
            found: torch.Tensor = logits.float().log_softmax(-1).gather(-1, responses[..., None])[..., 0]
            return found

        with torch.no_grad():
            ref_logp = logp(p.plain_reference)
        weight = torch.full_like(ref_logp, 1 / (p.responses * responses.shape[1]))
        loss = eager_loss(logp(p.plain), ref_logp, advantages[:, None], weight)
        loss.backward()
        total += loss.detach()
    return total
