"""The policy's weights for rollout: a plain copy where ZeRO 3 holds them in pieces; whole ones by name, in buckets."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from univg_fast.model import PackedModel
from univg_fast.model.lora import is_adapted, is_saved

BUCKET_BYTES = 2**30


def plain_copy(module: PackedModel, zero_stage: int) -> PackedModel:
    """What rollout reads: the module itself, or under ZeRO 3 a full copy without hooks or adapters. Before the engine.

    Under ZeRO 3 every rank must run the same number of forward passes through the partitioned module, which sampling
    cannot promise; a copy is free of that. `weight_buckets` brings it up to date.
    """
    if zero_stage < 3:
        return module
    copied = copy.deepcopy(module).requires_grad_(False)
    for name, layer in [(n, m) for n, m in copied.named_modules() if is_adapted(m) or is_saved(m)]:
        parent, _, last = name.rpartition(".")
        setattr(copied.get_submodule(parent), last, _base(layer) if is_adapted(layer) else layer.original_module)
    return copied


def declare_head(module: PackedModel, zero_stage: int) -> None:
    """Tell ZeRO 3 that `module`'s own forward reads the vocabulary projection, outside the projection's forward."""
    if zero_stage == 3:
        import deepspeed

        for weight in module.model.lm_head.parameters():  # two, where adapters hold a trained copy
            deepspeed.zero.register_external_parameter(module, weight)


def weight_buckets(
    module: PackedModel, max_bytes: int = BUCKET_BYTES, *, trained_only: bool = False
) -> Iterator[dict[str, Tensor]]:
    """The policy's weights by transformers' names, in buckets of at most `max_bytes` (or one larger weight).

    Collective where ZeRO 3 partitions them: each bucket is gathered for as long as it is being read. LoRA adapters come
    merged into the weights they adapt. Tied weights come once. `trained_only`: without those that no step changes.
    """
    bucket: list[tuple[str, nn.Module, str]] = []
    size = 0
    for item in named_weights(module.model):
        if trained_only and not any(p.requires_grad for p in _sources(*item[1:])):
            continue
        weight = _base(item[1]).get_parameter(item[2])
        more = getattr(weight, "ds_numel", weight.numel()) * weight.element_size()
        if bucket and size + more > max_bytes:
            yield from _gathered(bucket)
            bucket, size = [], 0
        bucket.append(item)
        size += more
    yield from _gathered(bucket)


def named_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, the module it belongs to, its name there) of every weight once; of an adapted layer the base's.

    An adapted weight that is tied to another one comes beside it, under both names: only one of the two has changed.
    """
    seen: set[int] = set()
    inside: tuple[str, ...] = ()  # of what peft put around a layer
    for name, layer in model.named_modules():
        if inside and name.startswith(inside):
            continue
        held = layer
        if is_adapted(layer) or is_saved(layer):
            inside = (*inside, name + ".")
            held = _base(layer)
        changed = is_adapted(layer) and not layer.disable_adapters and bool(layer.active_adapters)
        for key, weight in held.named_parameters(recurse=is_saved(layer)):
            if changed or id(weight) not in seen:
                seen.update(() if changed else (id(weight),))
                yield f"{name}.{key}" if name else key, layer, key


def _base(layer: Any) -> nn.Module:
    """What peft has put its adapters around, or of `modules_to_save` the one in use; else the layer itself."""
    if is_adapted(layer):
        base: nn.Module = layer.get_base_layer()
        return base
    if not is_saved(layer):
        return layer
    off = layer.disable_adapters or not layer.active_adapters
    used: nn.Module = layer.original_module if off else layer.modules_to_save[layer.active_adapters[0]]
    return used


def _gathered(bucket: list[tuple[str, nn.Module, str]]) -> Iterator[dict[str, Tensor]]:
    with gathered([p for _, layer, key in bucket for p in _sources(layer, key)]):
        with torch.no_grad():  # not around the yield: a receiver that fails would leave gradients off for good
            weights = {name: _merged(name, layer, key) for name, layer, key in bucket}
        yield weights


def _sources(layer: nn.Module, key: str) -> list[nn.Parameter]:
    """What a weight is made of: where it is adapted, of its adapters, too."""
    adapted = is_adapted(layer) and key == "weight"
    return list(layer.parameters()) if adapted else [_base(layer).get_parameter(key)]


def _merged(name: str, layer: Any, key: str) -> Tensor:
    """The weight, with the changes that the active adapters make to it."""
    weight = _base(layer).get_parameter(key).detach()
    if not is_adapted(layer) or key != "weight":
        return weight
    # peft's merge_adapter leaves the changes in the base weight itself
    wanted = [] if layer.disable_adapters else list(layer.active_adapters)
    added = [a for a in wanted if a not in layer.merged_adapters]
    removed = [a for a in layer.merged_adapters if a not in wanted]
    if (added or removed) and layer.lora_variant:
        raise ValueError(f"{name}: expected plain LoRA adapters, got {layer.lora_variant}; these cannot be sent merged")
    for sign, adapters in ((1.0, added), (-1.0, removed)):
        for adapter in adapters:
            weight = weight + sign * layer.get_delta_weight(adapter).to(weight)
    return weight


def gathered(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
    """Inside, the parameters are whole, also where ZeRO 3 holds them in pieces. Collective there."""
    if not any(hasattr(p, "ds_id") for p in parameters):
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(list(parameters))
    return context
