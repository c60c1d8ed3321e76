"""What a stage will take, by formula: every line carries its formula, and what is assumed is said, not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig

from univg_fast.check.packed import Packing
from univg_fast.config import Config
from univg_fast.model.families import FAMILIES
from univg_fast.model.load import builtin_configs, small_config
from univg_fast.train.making import batch_size, total_steps

GIB = 1 << 30
RESERVE = 0.10  # of the sum: kernels' workspace, NCCL, fragmentation


@dataclass(frozen=True)
class Machine:
    """What the user says of the machine; nothing of it is measured here."""

    gpus: int = 8
    gpu_gib: float = 80.0
    tflops: float = 200.0  # sustained by one GPU in training
    tokens_per_second: float | None = None  # trained by one GPU: a console's by its number of GPUs; over tflops
    decode_tokens_per_second: float = 1000.0  # sampled by one GPU, over all its completions


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


@dataclass(frozen=True)
class Line:
    """One line of an estimate. `value` in GiB or in hours."""

    name: str
    value: float
    formula: str


def shape_of(path: str, vocab: dict[str, int]) -> Shape:
    """The shape of the model at `path`; its parameters are counted without making any."""
    config = small_config(path, vocab) if path in builtin_configs() else AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model: Any = FAMILIES[config.model_type].CLASSES[1]._from_config(config)
    model.tie_weights()
    vision = sum(p.numel() for p in model.model.visual.parameters())
    text, seen = config.text_config, config.vision_config
    width = getattr(seen, "embed_dim", seen.hidden_size)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        language=sum(p.numel() for p in model.parameters()) - vision,
        vision=vision,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        kv=text.num_key_value_heads * head,
        vision_depth=seen.depth,
        vision_width=width,
        vision_intermediate=getattr(seen, "intermediate_size", None) or int(width * seen.mlp_ratio),
        patch_values=seen.patch_size**2 * 3,
        merge=seen.spatial_merge_size,
    )


def memory(stage: str, config: Config, shape: Shape, packing: Packing, gpus: int) -> list[Line]:
    """GiB on one GPU at the fullest moment of a step, line by line, the sum last."""
    half, zero = config.model.torch_dtype == "bfloat16", config.deepspeed.zero_stage
    width = 2 if half else 4
    everything = shape.language + shape.vision
    trained = shape.language + (0 if config.model.freeze_vision_tower else shape.vision)
    over = {level: gpus if zero >= level else 1 for level in (1, 2, 3)}

    def split(level: int) -> str:
        return f" / {over[level]} GPUs" if over[level] > 1 else ""

    grouped = f"{everything / 1e9:.3g} G parameters"
    lines = [
        Line("weights", everything * width / over[3], f"{grouped} x {width} bytes{split(3)}"),
        Line("gradients", trained * 4 / over[2], f"{trained / 1e9:.3g} G trained x 4 bytes (fp32){split(2)}"),
        Line(
            "optimizer",
            trained * (12 if half else 8) / over[1],
            f"{trained / 1e9:.3g} G trained x {12 if half else 8} bytes "
            f"(AdamW's two moments{', fp32 weights' if half else ''}){split(1)}",
        ),
    ]
    if stage == "grpo" and config.grpo.beta > 0:
        lines.append(Line("reference model", everything * width, f"{grouped} x {width} bytes (grpo.beta > 0)"))
    if stage == "grpo" and zero == 3:
        lines.append(Line("rollout copy", everything * width, f"{grouped} x {width} bytes (ZeRO 3)"))
    lines.append(_activations(config, shape, packing, width))
    lines.append(_vision(config, shape, packing, width))
    if stage == "grpo":
        prompts = -(-config.grpo.prompts_per_step // gpus)
        mean = (packing.tokens / max(1, packing.groups)) - packing.generations * packing.response_tokens
        tokens = prompts * (mean + packing.generations * config.grpo.max_completion_length)
        formula = (
            f"2 x {shape.layers} layers x {shape.kv} x {width} bytes x {tokens:,.0f} tokens "
            f"({prompts} prompts of {mean:,.0f} and {packing.generations} x {config.grpo.max_completion_length})"
        )
        cache = min(2 * shape.layers * shape.kv * width * tokens, config.rollout.cache_gib * GIB)
        formula += f", at most rollout.cache_gib={config.rollout.cache_gib:g}; not there during the update"
        lines.append(Line("rollout's keys and values", cache, formula))
    total = sum(line.value for line in lines)
    lines.append(Line("reserve", total * RESERVE, f"{RESERVE:.0%}: workspace, communication, fragmentation"))
    lines.append(Line("sum", total * (1 + RESERVE), "of these; the logits are never held as a whole"))
    return [Line(line.name, line.value / GIB, line.formula) for line in lines]


def hours(stage: str, config: Config, shape: Shape, packing: Packing, records: int, machine: Machine) -> list[Line]:
    """Hours of the stage on all GPUs, line by line, the sum last."""
    optim = config.sft if stage == "sft" else config.grpo
    recompute = config.model.gradient_checkpointing
    train = (8 if recompute else 6) * shape.language  # operations of a token
    rate = machine.tflops * 1e12 if machine.tokens_per_second is None else machine.tokens_per_second * train
    per_hour = rate * machine.gpus * 3600
    steps = total_steps(stage, config, records)
    epochs = steps * batch_size(stage, config) / max(1, records)
    tokens = packing.tokens * epochs
    updates = 1 if stage == "sft" else config.grpo.num_iterations
    speed = f"{rate / 1e12:,.3g} TFLOP/s x {machine.gpus} GPUs"
    lines = [
        Line(
            "training",
            tokens * updates * train / per_hour,
            f"{steps} steps = {epochs:.3g} epochs, {tokens:,.0f} tokens x {updates} update{'s' * (updates > 1)} x "
            f"{8 if recompute else 6} x {shape.language / 1e9:.3g} G parameters / ({speed})",
        )
    ]
    patches = packing.image_tokens * epochs * shape.merge**2
    factor = 2 * (1 if config.model.freeze_vision_tower else 3) + (2 if stage == "grpo" else 0)
    lines.append(
        Line(
            "images",
            patches * factor * shape.vision / per_hour,
            f"{patches:,.0f} patches x {factor} x {shape.vision / 1e9:.3g} G parameters, each image once a prompt",
        )
    )
    if stage == "grpo":
        if optim is config.grpo and config.grpo.beta > 0:
            value = tokens * 2 * shape.language / per_hour
            lines.append(Line("reference pass", value, "the same tokens x 2 x parameters (grpo.beta > 0)"))
        sampled = packing.groups * packing.generations * packing.response_tokens * epochs
        prompt = tokens - sampled
        lines.append(
            Line(
                "reading the prompts", prompt * 2 * shape.language / per_hour, f"{prompt:,.0f} tokens x 2 x parameters"
            )
        )
        value = sampled / (machine.decode_tokens_per_second * machine.gpus * 3600)
        formula = f"{sampled:,.0f} tokens / ({machine.decode_tokens_per_second:g} tokens/s x {machine.gpus} GPUs)"
        lines.append(Line("sampling", value, formula))
    lines.append(Line("sum", sum(line.value for line in lines), "without evaluation, checkpoints and loading"))
    return lines


def _activations(config: Config, shape: Shape, packing: Packing, width: int) -> Line:
    """Saved for the backward pass of the longest row: per token and layer the inputs of its products."""
    each = 6 * shape.hidden + 2 * shape.kv + 4 * shape.intermediate
    tokens = packing.longest_row
    if config.model.gradient_checkpointing:
        value = tokens * (shape.layers * shape.hidden + each) * width
        formula = (
            f"{tokens:,} tokens x ({shape.layers} layers x {shape.hidden} + {each:,} of one layer) x {width} bytes"
        )
    else:
        value = tokens * shape.layers * each * width
        formula = f"{tokens:,} tokens x {shape.layers} layers x {each:,} numbers x {width} bytes"
    return Line("activations of the longest row", value, formula + " (hidden x 6 + kv x 2 + intermediate x 4)")


def _vision(config: Config, shape: Shape, packing: Packing, width: int) -> Line:
    patches = packing.largest_images * shape.merge**2
    each = 8 * shape.vision_width + 2 * shape.vision_intermediate
    depth = 1 if config.model.freeze_vision_tower or config.model.gradient_checkpointing else shape.vision_depth
    value = patches * (shape.patch_values * 4 + depth * each * width)
    formula = f"{patches:,} patches x ({shape.patch_values} x 4 bytes + {depth} layers x {each:,} x {width} bytes)"
    return Line("images of the fullest row", value, formula)
