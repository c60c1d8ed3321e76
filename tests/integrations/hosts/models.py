"""A small model as transformers makes it, which the hosts here train."""

from __future__ import annotations

from typing import Any

import torch
from tiny import VOCAB

from univg_fast.model import load_model


def plain_model(family: str = "qwen2_vl", noise: float = 0.05) -> Any:
    """Random weights with norms and biases perturbed, so that positions and images matter to every token."""
    model: Any = load_model(f"{family}_tiny", vocab=VOCAB)
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(noise * torch.randn(parameter.shape, generator=generator))
    return model.train()
