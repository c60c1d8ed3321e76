"""The trained model as a transformers folder that `from_pretrained` and `--model.path` read; LoRA adapters as peft's.

A folder appears only when it is whole. Weights go into files a bucket at a time: no rank holds a second copy of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from univg_fast import distributed
from univg_fast.data.samples import Processor
from univg_fast.model import PackedModel
from univg_fast.train import manifest
from univg_fast.train.zero import BUCKET_BYTES, gathered, weight_buckets


def export(
    policy: PackedModel,
    processor: Processor,
    folder: Path,
    adapters_for: str | None = None,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Write model, tokenizer and image processor. Collective.

    LoRA adapters come merged into the weights. `adapters_for`: the model that they were put into; then the folder holds
    the adapters alone, as peft has them, and that path. `beat` is called with each bucket of weights, and each file.
    """
    temporary = folder.with_name(f".tmp-{folder.name}")

    def begin() -> None:
        if distributed.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            processor.tokenizer.save_pretrained(temporary)
            processor.image_processor.save_pretrained(temporary)

    def publish() -> None:
        if distributed.is_main():
            manifest.sync([*temporary.rglob("*"), temporary], beat)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            manifest.sync([folder.parent])

    try:
        distributed.all_or_none(f"exporting the model to {folder}", begin)
        if adapters_for is None:
            write_model(policy, temporary, beat=beat)
        else:
            write_adapters(policy.model, temporary, adapters_for)
        distributed.all_or_none(f"exporting the model to {folder}", publish)
    except distributed.RankError:
        if distributed.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_model(
    policy: PackedModel, folder: Path, max_bytes: int = BUCKET_BYTES, beat: Callable[[], None] = lambda: None
) -> None:
    """Config and weights, under the names of the family's published checkpoints; a file per bucket. Collective."""
    model, shards, total = policy.model, list[list[str]](), 0
    problem: Exception | None = None  # raised at the end: until then every rank takes part in gathering
    for bucket in weight_buckets(policy, max_bytes):
        beat()
        if not distributed.is_main() or problem is not None:
            continue
        tensors = {name: weight.to("cpu", copy=True).contiguous() for name, weight in bucket.items()}
        tensors = revert_weight_conversion(model, tensors)
        shards.append(sorted(tensors))
        total += sum(x.numel() * x.element_size() for x in tensors.values())
        try:
            save_file(tensors, folder / f"{len(shards)}.part", {"format": "pt"})
        except (OSError, RuntimeError, SafetensorError) as error:
            problem = error

    def finish() -> None:
        if problem is not None:
            raise problem
        if distributed.is_main():
            _name_shards(folder, shards, total)
            config = deepcopy(model.config)
            config.architectures, config.dtype = [type(model).__name__], model.dtype
            config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)

    distributed.all_or_none(f"writing weights to {folder}", finish)


def _name_shards(folder: Path, shards: list[list[str]], total: int) -> None:
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    names = names if len(names) > 1 else ["model.safetensors"]
    for number, name in enumerate(names):
        (folder / f"{number + 1}.part").rename(folder / name)
    if len(names) > 1:
        where = {weight: name for name, weights in zip(names, shards, strict=True) for weight in weights}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_adapters(model: Any, folder: Path, base: str) -> None:
    """peft's files, and the model's config.json, so that the folder is one of a model. Collective."""
    state = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            with gathered([weight]):
                if distributed.is_main():
                    state[f"base_model.model.{name}"] = weight.detach().to("cpu", copy=True)

    def finish() -> None:
        if distributed.is_main():
            import peft

            settings = deepcopy(model.peft_config["default"])
            with torch.device("meta"):  # without what the trainer has put into the layers
                wrapped = peft.get_peft_model(type(model)(model.config), settings, autocast_adapter_dtype=False)
            settings.base_model_name_or_path = base  # now: peft asks the model for it first, which has no name
            wrapped.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
            model.config.save_pretrained(folder)

    distributed.all_or_none(f"writing adapters to {folder}", finish)
