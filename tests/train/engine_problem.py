"""The small problem of the engine tests: a tied language model whose forward pass gives a row's loss."""

from __future__ import annotations

import torch
from torch import nn

from univg_fast.config import OptimConfig

STEPS = 5
OPTIM = OptimConfig(learning_rate=1e-2, weight_decay=0.1, warmup_ratio=0.4, max_grad_norm=2.0)
Row = tuple[torch.Tensor, torch.Tensor, float]


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.hidden = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.frozen = nn.Linear(16, 16)
        self.lm_head = nn.Linear(16, 32, bias=False)
        self.lm_head.weight = self.embed.weight
        self.frozen.requires_grad_(False)
        self.shift = nn.Parameter(torch.full((3,), 0.25), requires_grad=False)  # of a size that 2 ranks cannot halve

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.tanh(self.frozen(self.hidden(self.embed(tokens))))) + self.shift.sum()


class TinyLM(nn.Module):
    """Uses lm_head.weight in its own forward pass, as a fused loss does: ZeRO 3 must gather it there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = Body()
        self.breaks_a_gradient = False

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor, weight: float) -> torch.Tensor:
        logits = self.body(tokens) @ self.body.lm_head.weight.T
        loss = nn.functional.cross_entropy(logits.float(), targets, reduction="sum") * weight
        if self.breaks_a_gradient:  # adds 0, with a gradient that is not a number, of one parameter
            loss = loss + (self.body.norm.bias.sum() * 0.0).abs().sqrt()
        return loss


def batch(step: int) -> list[Row]:
    """Five rows of different lengths, each weighted by one over the tokens of the whole step."""
    generator = torch.Generator().manual_seed(step)
    rows = [torch.randint(0, 32, (2, 4 + 3 * i), generator=generator) for i in range(5)]
    return [(row[0], row[1], 1 / sum(r.shape[1] for r in rows)) for row in rows]
