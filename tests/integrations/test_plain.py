"""The example of docs/dropins.md: "given this loss, write this instead" has the same loss and the same gradients."""

from __future__ import annotations

from typing import Any

import torch
from pages import snippets


def test_the_example_of_the_docs() -> None:
    space: dict[str, Any] = {}
    for block in snippets("Plain PyTorch"):
        exec(block, space)
    generator = torch.Generator().manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 16), torch.nn.Tanh())
    head = torch.nn.Linear(16, 50, bias=False)
    ids = torch.randint(0, 50, (4, 12), generator=generator)
    mask = (torch.arange(7) < torch.tensor([7, 3, 1, 5])[:, None]).float()
    given = (torch.randn(4, generator=generator), -4 + 0.3 * torch.randn(4, 7, generator=generator), mask)
    found = []
    for name in ("loss_before", "loss_after"):
        loss = space[name](body, head, ids, 5, *given)
        found.append((loss, *torch.autograd.grad(loss, [*body.parameters(), *head.parameters()])))
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-7)
    assert found[0][0].abs() > 1e-3
