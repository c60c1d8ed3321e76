"""The trained model as a transformers folder that `from_pretrained` and `--model.path` read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.data.samples import Processor


def export(engine: Any, processor: Processor, folder: Path) -> None:
    """Write model, tokenizer and image processor; the folder appears only when it is whole. Collective."""
    model, state = engine.module.model, full_state(engine)

    def write() -> None:
        if not distributed.is_main():
            return
        temporary = folder.with_name(f".tmp-{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary, state_dict=state)
        processor.tokenizer.save_pretrained(temporary)
        processor.image_processor.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)

    distributed.all_or_none(f"exporting the model to {folder}", write)


def full_state(engine: Any) -> dict[str, torch.Tensor]:
    """The model's whole state dict on rank 0's host, {} elsewhere. Collective."""
    model, state = engine.module.model, {}
    if engine.zero_optimization_stage() < 3:
        if not distributed.is_main():
            return {}
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}
    import deepspeed

    for name, parameter in model.named_parameters(remove_duplicate=False):
        with deepspeed.zero.GatheredParameters([parameter]):
            if distributed.is_main():
                state[name] = parameter.detach().cpu().clone()
    return state
