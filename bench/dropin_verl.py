"""An update of verl 0.9's actor on a small Qwen2-VL: 2 prompts of 3 images, 4 completions each, in one micro-batch.

All of `TrainingWorker.train_mini_batch`, from the wheel, on a CPU (tests/integrations/hosts/verl_worker.py): FSDP2 on
one rank, verl's fused head ("torch", chunks of 512 rows), `vanilla` with the entropy bonus and KL, metrics, the norm of
the gradients, and SGD with a rate of 0, so that every step is the first one. Needs a process of its own.
"""

from __future__ import annotations

import functools
import importlib
import sys
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import torch

from univg_fast.integrations import verl

from .dropin_host import ROOT, SIZES, Step, both, make_advantages, make_batch
from .rollout import PAD, Size, make_model

HOSTS = ROOT / "tests" / "integrations" / "hosts"


def problem(size: str) -> tuple[Step, Step]:
    """(verl's update, the same with the drop-in)."""
    sys.path.append(str(HOSTS))
    importlib.import_module("verl_on_cpu").prepare()
    host, shape = importlib.import_module("verl_worker"), SIZES[size]
    with TemporaryDirectory() as folder:
        make_model(shape, torch.device("cpu"))[1].save_pretrained(folder)
        worker = host.make_worker(folder, micro_batch=shape.prompts * shape.group, lr=0.0, lr_scheduler_type="constant")
    data = _data(host, shape, torch.zeros(shape.prompts * shape.group, shape.tokens))
    data = _data(host, shape, host.log_probs(worker, data))
    from verl.workers import engine_workers

    worker.engine.optimizer_zero_grad = lambda: None  # dropins clears gradients, and looks at them before
    config = host.actor_config("vanilla")

    def step(drop_in: bool) -> torch.Tensor:
        with verl.patch() if drop_in else nullcontext():
            worker.set_loss_fn(functools.partial(engine_workers.ppo_loss, config=config))
            (loss,) = worker.train_mini_batch(data.clone())["metrics"]["loss"]
        return torch.tensor(loss)

    return both(step, worker.engine.module)


def _data(host: Any, shape: Size, logp: torch.Tensor) -> Any:
    """An update's data; logp [B, tokens] of the policy, around which the old and the reference policy's are."""
    inputs, counted = make_batch(shape)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    patches = inputs["pixel_values"].split(shape.images * shape.side**2)
    grids = inputs["image_grid_thw"].split(shape.images)
    images = [{"pixel_values": p, "image_grid_thw": g} for p, g in zip(patches, grids, strict=True)]
    noise = torch.randn(2, *counted.shape, generator=torch.Generator().manual_seed(3))
    columns = {
        "old_log_probs": logp + 0.2 * noise[0],
        "ref_log_prob": logp + 0.2 * noise[1],
        "advantages": make_advantages(shape)[:, None].expand(counted.shape).clone(),
    }
    prompt = ids.shape[1] - shape.tokens
    uids = [f"prompt {i // shape.group}" for i in range(len(ids))]
    return host.as_verl(ids, mask, prompt, images, uids, columns, len(ids), PAD)
