"""Forward and backward of a row never wait for the device: no value is read back, no size asked for, nothing copied.

Three times: the model on the `meta` device, where a tensor has no values to read; the model with the trainer's losses
on the CPU, where every reading is counted; and on a GPU, where torch itself refuses to wait.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, random_group, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from univg_kernels import GrpoConfig

from tests.invariants.waiting import Calls, Operations
from univg_fast.loss import grpo_head, sft_head
from univg_fast.loss.grpo import RowTargets
from univg_fast.model import PackedModel
from univg_fast.model.attention.libraries import bottom_right_mask
from univg_fast.model.packed import Head
from univg_fast.packing import Row, build_row

GROUPS = [([(8, 8), (4, 6), (8, 8)], [5, 3, 4]), ([], [2, 6]), ([(4, 6)], [7])]


def make_row(model: PackedModel, face: str) -> Row:
    rng = np.random.default_rng(0)
    groups = [random_group(rng, grids, lengths, model.family.patch_size) for grids, lengths in GROUPS]
    return build_row(groups, model.family, attention=face)


def make_model(family: str, frozen: bool, checkpointing: bool) -> PackedModel:
    model = tiny_model(family).train()
    model.model.model.visual.requires_grad_(not frozen)
    if checkpointing:
        model.model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


class Copies(TorchDispatchMode):
    """Copies from the host to the device, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sources = [x for x in args if isinstance(x, torch.Tensor)]
        if (
            isinstance(out, torch.Tensor)
            and out.is_meta
            and sources
            and any(not x.is_meta and x.dim() for x in sources)
        ):
            self.seen[str(func)] += 1
        return out


@pytest.mark.parametrize("face", ["grouped", "paths", "varlen"])
@pytest.mark.parametrize(("frozen", "checkpointing"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_reads_nothing_back(family: str, frozen: bool, checkpointing: bool, face: str) -> None:
    """On the meta device, whose tensors refuse to be read."""
    model = make_model(family, frozen, checkpointing).to(torch.bfloat16)
    row = make_row(model, face).to("meta")
    model.to("meta")
    with Copies() as copies:
        hidden = model.hidden(row)
        hidden.sum().backward()
    assert hidden.is_meta and len(hidden) == len(row.target_ids)
    assert copies.seen == {}
    assert all(p.grad is not None for p in model.model.model.language_model.parameters())


@pytest.mark.parametrize(
    "read",
    [torch.Tensor.tolist, torch.Tensor.item, bool, torch.nonzero, lambda x: torch.ones(3, device="meta")[x > 0]],
)
def test_the_meta_device_does_refuse(read: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones(1 if read in (torch.Tensor.item, bool) else 3, device="meta"))


def policy_head(row: Row, device: str = "cpu") -> Head:
    answers, generator = len(row.cu_seqlens) - 1, torch.Generator().manual_seed(0)
    advantages, phi = torch.randn(2, answers, generator=generator)
    logp = -torch.rand(2, len(row.target_ids), generator=generator)
    targets = RowTargets(*(x.to(device) for x in (advantages, phi.exp(), *logp)))
    return grpo_head(row, targets, float(answers), GrpoConfig(beta=0.04))


HEADS = {"grpo": policy_head, "sft": lambda row, device="cpu": sft_head(row, float(len(row.target_ids)))}


@pytest.mark.parametrize("face", ["grouped", "paths"])
@pytest.mark.parametrize("stage", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_with_its_loss_reads_nothing_back(family: str, stage: str, face: str) -> None:
    """Images are encoded before: the tower splits by lengths on the host, as the test on the meta device shows."""
    model = make_model(family, frozen=True, checkpointing=True)
    row = make_row(model, face)
    head = HEADS[stage](row)
    with Operations() as encoding, torch.no_grad():
        features = model.encode_images(row.pixel_values, row.vision)
    with Operations() as operations, Calls() as calls:
        loss = model(row, head, features)[0]
        loss.backward()
    assert encoding.seen == {} and operations.seen == {} and calls.seen == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("stage", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_is_not_waited_for(family: str, stage: str) -> None:
    model = PackedModel(make_model(family, frozen=False, checkpointing=True).model.to("cuda", torch.bfloat16))
    row = make_row(model, model.attention.face)
    head = HEADS[stage](row.to("cuda"), "cuda")
    row = row.to("cuda")
    model(row, head)[0].backward()  # kernels are compiled, buffers made
    bottom_right_mask.cache_clear()  # another row's has to be made, too
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(row, head)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_a_whole_step_waits_for_nothing_before_its_optimizer(
    python_launcher: Callable[..., Any], tmp_path: Path
) -> None:
    """Reference, all rows forward and backward, at each ZeRO stage, with DeepSpeed's part of it."""
    worker, report = str(Path(__file__).with_name("waiting_worker.py")), tmp_path / "report.json"
    done = python_launcher(worker, str(tmp_path), str(report), ranks=1)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(report.read_text())
    assert found.keys() == {f"{stage} {zero}" for stage in ("sft", "grpo") for zero in range(4)}
    for name, seen in found.items():
        assert seen["rows"] >= 2 and seen["before"] == {}, f"{name}: {seen}"
        assert seen["whole"], name  # the counters do count: the norm, the loss and the metrics are read afterwards


def test_the_counters_count() -> None:
    x, mask = torch.arange(3.0), torch.tensor([True, False, True])
    with Operations() as operations, Calls() as calls:
        x.sum().item()
        x.tolist()
        bool(mask.any())
        x[mask]
        x.repeat_interleave(torch.tensor([1, 2, 0]))
        mask.nonzero()
        float(x[0])
    assert operations.seen == {"_local_scalar_dense": 3, "index": 1, "repeat_interleave": 1, "nonzero": 1}
    assert calls.seen == {"item": 1, "tolist": 1, "__bool__": 1, "__float__": 1}
