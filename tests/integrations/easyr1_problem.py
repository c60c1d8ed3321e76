"""A step of the minimal EasyR1 (hosts/easyr1.py) on a small Qwen2-VL with images, and what it gives."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from integrations.hosts import easyr1 as host
from tiny import IMAGE, VOCAB
from torch import Tensor

from univg_fast.integrations import easyr1
from univg_fast.model import load_model

B, P, R, TEMPERATURE = 8, 12, 7, 0.9
IOUS = [0.1, 0.9, 0.3, 1.0, 0.5, 0.6, 0.99, 0.8]
SCORES = {"overall": [0.2, 1.0, 0.7, 1.5, 0.1, 0.4, 0.9, 1.1], "iou": IOUS}
UIDS = ["a", "a", "b", "b", "c", "c", "d", "d"]


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str = "0.3.3.dev0") -> None:
    """The host under the names that EasyR1 has, for this test alone."""
    info = folder / f"verl-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: verl\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))
    for name in ("verl", "verl.workers", "verl.workers.actor", "verl.trainer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("verl.workers.actor.dp_actor", "verl.trainer.ray_trainer"):
        monkeypatch.setitem(sys.modules, name, host)


def make_data() -> Any:
    """Prompts padded left with an image each, responses padded right; none of its tensors is shared between calls."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 100, (B, P + R), generator=g)
    ids[:, 5:9] = IMAGE
    mask = torch.ones_like(ids)
    for row, (left, right) in enumerate([(3, 0), (0, 2), (1, 0), (0, 4), (2, 1), (0, 0), (1, 3), (0, 1)]):
        mask[row, :left] = 0
        mask[row, P + R - right :] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, None].expand(B, 4, -1).clone()
    images = [
        {"pixel_values": torch.randn(16, 3 * 2 * 14**2, generator=g), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        for _ in range(B)
    ]
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        "responses": ids[:, P:],
        "response_mask": mask[:, P:],
    }
    return host.data_proto(batch, {"uid": np.array(UIDS), "multi_modal_inputs": images}, TEMPERATURE)


def make_model() -> Any:
    model: Any = load_model("qwen2_vl_tiny", vocab=VOCAB)
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    return model


class Steps(torch.optim.SGD):
    """Keeps the gradients of each step."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model.parameters(), lr=1e-2)
        self.named, self.found = dict(model.named_parameters()), list[dict[str, Tensor]]()

    def step(self, closure: Any = None) -> None:
        self.found.append({name: p.grad.clone() for name, p in self.named.items() if p.grad is not None})
        super().step(closure)


def train(
    patched: bool, scale: Tensor | None = None, validation: dict[str, list[float]] | None = None, **settings: Any
) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Metrics and gradients of a training step with two updates. settings: of the drop-in, and of the actor.

    scale: [B] factors of the advantages, in the host's hands. validation: scores of one before the step.
    """
    own = {name: settings.pop(name) for name in ("phi", "difficulty", "difficulty_power") if name in settings}
    model = make_model()
    optimizer = Steps(model)
    actor = host.DataParallelPPOActor(host.ActorConfig(**settings), model, optimizer)
    data = make_data()
    old, noise = actor.compute_log_prob(data), torch.Generator().manual_seed(1)
    data.batch["old_log_probs"] = old + 0.3 * torch.randn(B, R, generator=noise)
    data.batch["ref_log_probs"] = old + 0.2 * torch.randn(B, R, generator=noise)
    if scale is not None:
        actor.update_policy = weighted(actor.update_policy, scale)
    with easyr1.patch(**own) if patched else contextlib.nullcontext():
        if validation is not None:
            host.validate([validation])
        metrics = host.training_step(actor, data, SCORES)
    return metrics, optimizer.found


def weighted(update_policy: Any, scale: Tensor) -> Any:
    def update(data: Any) -> Any:
        data.batch["advantages"] = data.batch["advantages"] * scale[:, None]
        return update_policy(data)

    return update


def assert_same(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> None:
    assert ours[0].keys() == theirs[0].keys()
    for name, value in theirs[0].items():
        np.testing.assert_allclose(ours[0][name], value, rtol=1e-5, atol=2e-6, err_msg=name)
    for step, (a, b) in enumerate(zip(ours[1], theirs[1], strict=True)):
        assert a.keys() == b.keys()
        for name in b:
            error = (a[name] - b[name]).norm() / b[name].norm().clamp(min=1e-6)
            assert error < 1e-5, f"step {step}, {name}: {error}"
