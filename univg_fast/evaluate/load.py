"""A model's folder opened for answering: the model, and the processor that makes its prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from univg_fast.config import Config, ConfigError, load_config
from univg_fast.config.schema import DataConfig
from univg_fast.data.samples import Processor, make_processor
from univg_fast.model import PackedModel, load_model
from univg_fast.model.families.base import Family
from univg_fast.model.load import read_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def processor_of(tokenizer: Any, family: Family, data: DataConfig) -> Processor:
    """A processor for a family's model, as the section `data` says. ValueError for another model's tokenizer."""
    processor = make_processor(
        tokenizer,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        patch_size=family.patch_size,
        merge_size=family.merge_size,
        temporal_patch_size=family.temporal_patch_size,
        prompt_template=data.prompt_template,
        max_length=data.max_length,
        exif=data.exif,
        coordinates=family.coordinates,
        image_mean=family.image_mean,
        image_std=family.image_std,
    )
    if processor.image_token_id != family.image_token_id:  # prompts follow the one, the model's input the other
        raise ValueError(
            f"model.path: expected the tokenizer's <|image_pad|> to be token {family.image_token_id}, the "
            f"image_token_id in config.json, got {processor.image_token_id}; copy both from where the model comes from"
        )
    return processor


def model_folder(path: str) -> Path:
    """ValueError where `path` is no folder of a model."""
    if not any((Path(path) / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"--model: expected a folder with a config.json, got {path!r}")
    return Path(path)


def open_model(path: str, config: Config, device: torch.device) -> tuple[PackedModel, Processor]:
    """ValueError where `path` is no folder of a model that this package knows."""
    model_folder(path)
    logging.disable_progress_bar()  # of reading the weights
    tokenizer = read_tokenizer(path)
    model: Any = load_model(path, DTYPES[config.model.torch_dtype], vocab=tokenizer.get_vocab())
    packed = PackedModel(model.to(device), config.model.attention).eval()
    return packed, processor_of(tokenizer, packed.family, config.data)


def run_config(model: str, source: str | None, keys: list[str]) -> tuple[Config, str]:
    """The configuration that a model is asked with, and where it is from: --config; else that of the run which the
    folder lies in (RUN/hf/STAGE), but for how many samples the trainer looked at; else the defaults. `keys`:
    --section.key=value. ConfigError."""
    beside, own = Path(model).resolve().parent.parent / "config.yaml", list[str]()
    if source is None and Path(model).resolve().parent.name == "hf" and beside.is_file():
        source, own = str(beside), ["--evaluate.max_samples=null"]
    if any(not key.startswith("--") for key in keys):
        raise ConfigError(f"expected --section.key=value, got {' '.join(keys)}")
    return load_config([*(["--config", source] if source else []), *own, *keys]), source or "the defaults"


def weights_of(model: str) -> list[list[Any]]:
    """Names, sizes and times of a folder's weights: another model in the same place is another one. ValueError."""
    files = sorted(path for path in model_folder(model).iterdir() if path.suffix in (".safetensors", ".bin", ".json"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
