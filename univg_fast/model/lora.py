"""LoRA by peft: adapters inside the model's own layers, so that the packed forward pass runs as before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

LAYERS = r".*\blanguage_model\.layers\..*\.(q|k|v|o|gate|up|down)_proj"  # the plain names would hit towers, too


def apply_lora(
    inner: Any,
    *,
    r: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    target_modules: Sequence[str] = (),
    modules_to_save: Sequence[str] = (),
    seed: int = 0,
) -> str:
    """Put adapters into a transformers model, and train nothing else. -> a line that tells what trains.

    `target_modules`, `modules_to_save`: endings of module names; no targets: every linear layer of the language model.
    ValueError where a name fits nothing, where one lies in a frozen vision tower, or where a target is read by more
    than its own forward pass: the embeddings and the vocabulary's projection, which `modules_to_save` can train.
    """
    import peft  # late: a run without adapters does not need it

    _require(inner, "target_modules", target_modules)
    _require(inner, "modules_to_save", modules_to_save)
    tied = bool(
        getattr(inner.config.get_text_config(), "tie_word_embeddings", False) or inner.config.tie_word_embeddings
    )
    config = peft.LoraConfig(
        r=r,
        lora_alpha=lora_alpha,  # type: ignore[arg-type]  # a float is as good: it is divided by r
        lora_dropout=lora_dropout,
        target_modules=list(target_modules) or LAYERS,
        modules_to_save=list(modules_to_save) or None,
        ensure_weight_tying=tied and bool({"lm_head", "embed_tokens"} & set(modules_to_save)),
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)  # the first weights of the adapters: on the host, the same on every rank
        peft.get_peft_model(inner, config, autocast_adapter_dtype=False)
    inner.to(inner.device)
    trained = sum(p.numel() for p in inner.parameters() if p.requires_grad)
    layers = sum(map(is_adapted, inner.modules()))
    beside = f", {', '.join(modules_to_save)} as a whole" if modules_to_save else ""
    return f"LoRA: {layers} layers of rank {r}{beside}; {trained / 1e6:.4g} M parameters train"


def is_adapted(layer: nn.Module) -> bool:
    """Whether this is one of peft's LoRA layers, which hold the layer they adapt."""
    return hasattr(layer, "get_delta_weight")


def is_saved(layer: nn.Module) -> bool:
    """Whether this is peft's wrapper of one of `modules_to_save`, which holds the module and a trained copy of it."""
    return hasattr(layer, "modules_to_save") and hasattr(layer, "original_module")


def has_adapters(model: nn.Module) -> bool:
    return any(is_adapted(layer) or is_saved(layer) for layer in model.modules())


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model is the one that the adapters were put into. What trains stays as it is."""
    layers: list[Any] = [x for x in model.modules() if is_adapted(x) or is_saved(x)]
    wanted = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def _require(inner: Any, key: str, names: Sequence[str]) -> None:
    """ValueError unless each name ends a module's, none of them in a frozen tower or, as a target, a vocabulary's."""
    known = dict(inner.named_modules())
    for ending in names:
        hit = [name for name in known if re.search(rf"(^|\.){re.escape(ending)}$", name)]
        if not hit:
            raise ValueError(f"model.lora.{key}: expected the end of a module's name of this model, got {ending!r}")
        tower = [name for name in hit if "visual" in name.split(".")]
        if inside := [name for name in tower if not any(p.requires_grad for p in known[name].parameters())]:
            raise ValueError(
                f"model.lora.{key}: {ending!r} also means {inside[0]}, inside of the frozen vision tower; name the "
                "language model's by a longer ending, or set model.freeze_vision_tower=false"
            )
        if key == "target_modules" and (words := {"lm_head", "embed_tokens"} & {n.split(".")[-1] for n in hit}):
            raise ValueError(
                f"model.lora.target_modules: {words.pop()} cannot have adapters, as the losses read its weight itself; "
                "name it in model.lora.modules_to_save"
            )
