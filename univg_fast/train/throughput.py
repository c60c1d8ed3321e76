"""How fast a step was: tokens and prompts per second, and model FLOPs by formula against the device's peak.

Model FLOPs are what the mathematics asks for, whatever computes it: each prompt once for its group, products and
attention only, nothing for recomputation, norms, padding or the optimizer. docs/metrics.md has the formula.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.model import PackedModel
from univg_fast.train.optimizer import elements, shape_of

# TFLOP/s of dense bfloat16 products, from the makers' data sheets, by torch's name of the device up to a word's end.
PEAKS = {
    "NVIDIA A10": 125.0,
    "NVIDIA A100": 312.0,
    "NVIDIA A800": 312.0,
    "NVIDIA B200": 2250.0,
    "NVIDIA H20": 148.0,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.4,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA L4": 121.0,
    "NVIDIA L40S": 362.0,
}


def peak_tflops(device_name: str, dtype: torch.dtype) -> float | None:
    """Of one device, where the table knows it; None for another dtype than bfloat16 and for a slice of a device."""
    known = [name for name in PEAKS if re.match(rf"{re.escape(name)}(?!\w)", device_name)]
    if not known or dtype != torch.bfloat16 or "MIG" in device_name:
        return None
    return PEAKS[max(known, key=len)]


@dataclass(frozen=True)
class Weights:
    """Numbers in the matrices of a part of the model: all, and those that train."""

    all: int
    trained: int

    @classmethod
    def of(cls, parts: Iterable[nn.Module]) -> Weights:
        """Embedding tables are looked up, not multiplied."""
        modules = [m for part in parts for m in part.modules() if not isinstance(m, nn.Embedding)]
        own = {id(p): p for m in modules for p in m.parameters(recurse=False) if len(shape_of(p)) >= 2}
        return cls(sum(map(elements, own.values())), sum(elements(p) for p in own.values() if p.requires_grad))

    def flops(self, forwards: int, backwards: int, reached: bool) -> float:
        """Of one token in so many passes. `reached`: the gradient goes through to what lies below or inside."""
        return 2.0 * (self.all * (forwards + backwards * reached) + self.trained * backwards)


@dataclass(frozen=True)
class StepFlops:
    """Model FLOPs of a step for each unit of its work: all forward and backward passes of the stage together."""

    token: float  # of the groups, each prompt once
    pair: float  # of a query and a key in the language model
    target: float  # a scored token, in the vocabulary projection
    patch: float
    patch_pair: float  # of two patches of an image

    @classmethod
    def of(cls, model: PackedModel, stage: str, config: Config) -> StepFlops:
        """Stage 2 reads the group once to sample it, and once for the reference where there is one."""
        text, seen, tower = model.model.config.get_text_config(), model.model.config.vision_config, model.family.tower
        visual = model.model.model.visual
        updates = config.grpo.num_iterations if stage == "grpo" else 1
        forwards = updates + (1 + (config.grpo.beta > 0) if stage == "grpo" else 0)
        looks = forwards if stage == "sft" or model.vision_trains else 1  # a frozen tower's features are kept
        merger = Weights.of(map(visual.get_submodule, model.family.projector))
        pixels, blocks = Weights.of([visual.patch_embed]), Weights.of([visual.blocks])
        below, area = blocks.trained > 0, seen.spatial_merge_size**2
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        attended = text.num_hidden_layers * text.num_attention_heads * head_dim
        attending = looks + 2 * updates * below  # the backward pass of an attended pair is two forward ones
        return cls(
            token=Weights.of([model.model.model.language_model]).flops(forwards, updates, True),
            pair=4.0 * attended * (forwards + 2 * updates),
            target=Weights.of([model.model.lm_head]).flops(forwards, updates, True),
            patch=pixels.flops(looks, updates, False)
            / seen.temporal_patch_size  # the frames of a still image are equal
            + blocks.flops(looks, updates, below)
            + merger.flops(looks, updates, model.vision_trains) / area
            + 4.0 * tower.width * (tower.depth - tower.whole) * tower.window * attending,
            patch_pair=4.0 * tower.width * tower.whole * attending,
        )

    def step(self, metrics: Mapping[str, float]) -> float:
        """FLOPs of a step over all ranks, from what its metrics count."""
        counted = (
            (self.token, "group_tokens"),
            (self.pair, "attention_pairs"),
            (self.target, "scored_tokens"),
            (self.patch, "patches"),
            (self.patch_pair, "patch_pairs"),
        )
        return sum(each * metrics[key] for each, key in counted)


@dataclass(frozen=True)
class Throughput:
    """Turns the counts of a step and its seconds into rates. `peak`: TFLOP/s of one device; None: not known."""

    flops: StepFlops
    peak: float | None

    @classmethod
    def of(cls, model: PackedModel, stage: str, config: Config) -> Throughput:
        device = model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return cls(StepFlops.of(model, stage, config), peak_tflops(name, model.model.dtype))

    def figures(self, metrics: Mapping[str, float], seconds: float) -> dict[str, float]:
        """Rates over all ranks; TFLOP/s and MFU are of one device, as all devices are alike."""
        found = rates(metrics, seconds)
        if "group_tokens" in metrics:
            found["tflops"] = self.flops.step(metrics) / seconds / 1e12 / distributed.world_size()
            if self.peak is not None:
                found["mfu"] = found["tflops"] / self.peak
        return found


def rates(metrics: Mapping[str, float], seconds: float) -> dict[str, float]:
    """What a step did in a second, and the share of the step that waited for data."""
    named = {
        "tokens_per_second": "group_tokens",
        "dense_tokens_per_second": "dense_tokens",
        "prompts_per_second": "num_samples",
    }
    found = {name: metrics[key] / seconds for name, key in named.items() if key in metrics}
    if "timing_s/data" in metrics:
        found["data_wait"] = metrics["timing_s/data"] / seconds
    return found


def memory() -> dict[str, float]:
    """This process's memory in GB: on CUDA the peaks since the last call, and the resident set of the host."""
    found = {}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["memory/allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
        found["memory/reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
        torch.cuda.reset_peak_memory_stats()
    pages = Path("/proc/self/statm")
    if pages.is_file():  # Linux
        found["memory/resident_gb"] = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e9
    return found
