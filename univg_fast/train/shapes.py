"""The numbers of a model that formulas need, from its config: no weight is read or made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from univg_fast.config import ModelConfig
from univg_fast.model.families import FAMILIES, family_of
from univg_fast.model.load import ADAPTERS, adapted_model, builtin_configs, read_config, small_config
from univg_fast.train.optimizer import parameter_groups
from univg_fast.train.setup import freeze


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that the formulas need."""

    language: int  # parameters
    vision: int
    hidden: int
    intermediate: int
    layers: int
    kv: int  # key/value heads x their width
    vision_depth: int
    vision_width: int
    vision_intermediate: int
    patch_values: int  # numbers of one patch
    merge: int
    vocab: int = 151936
    trained: int = 0  # parameters; of `language` and `vision`, or adapters beside them
    vision_trained: int = 0
    adapters: int = 0  # parameters that LoRA adds, `modules_to_save` among them
    largest_group: int = 0  # parameters of the optimizer's largest group
    head_trains: bool = True
    tied: bool = False
    feature_levels: int = 1  # vectors of an image token: Qwen3-VL's tower gives those of several layers


def shape_of(model: ModelConfig, vocab: dict[str, int]) -> Shape:
    """The shape of the model that a run would train; its parameters are counted without making any."""
    path = model.path
    while (Path(path) / ADAPTERS).is_file():
        path = adapted_model(path)
    config = small_config(path, vocab) if path in builtin_configs() else read_config(path)
    with torch.device("meta"):
        made: Any = FAMILIES[config.model_type].CLASSES[1]._from_config(config)
    made.tie_weights()
    vision, everything = count(made.model.visual), count(made)
    freeze(made, model)
    groups = [total(group["params"]) for group in parameter_groups(made, 0.0)]
    head = made.lm_head
    text, family = config.get_text_config(), family_of(config)
    return Shape(
        language=everything - vision,
        vision=vision,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        kv=text.num_key_value_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads),
        vision_depth=family.tower.depth,
        vision_width=family.tower.width,
        vision_intermediate=family.tower.intermediate,
        patch_values=family.patch_dim,
        merge=family.merge_size,
        vocab=text.vocab_size,
        trained=sum(groups),
        vision_trained=total(p for p in made.model.visual.parameters() if p.requires_grad),
        adapters=count(made) - everything,
        largest_group=max(groups, default=0),
        head_trains=any(p.requires_grad for p in head.parameters()),
        tied=bool(getattr(text, "tie_word_embeddings", False)),
        feature_levels=family.tower.levels,
    )


def count(module: nn.Module) -> int:
    return total(module.parameters())


def total(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
