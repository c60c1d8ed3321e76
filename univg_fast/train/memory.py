"""What a stage will take of a GPU's memory, by formula and before any weight is read; every line carries its formula.

What depends on the data is the longest row and its images: measured by `python -m univg_fast.check`, assumed otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.train.optimizer import offload_device
from univg_fast.train.shapes import Shape, shape_of
from univg_fast.train.streaming import page_locked

GIB = 1 << 30
RESERVE = 0.10  # of the sum: kernels' workspace, NCCL, fragmentation
LOGIT_ROWS = 4096  # of logits held at a time on a GPU, univg_kernels/_linear_head.py
# What to set where a line is the one that is too much.
KNOBS = {
    "weights": "deepspeed.zero_stage=3 on several GPUs",
    "gradients": "deepspeed.zero_stage=2 on several GPUs, model.lora, or "
    "deepspeed.config.data_types.grad_accum_dtype=bf16 (sums of many rows are then rounded)",
    "optimizer": "more GPUs with deepspeed.zero_stage=1, model.lora, or "
    "deepspeed.config.zero_optimization.offload_optimizer.device=cpu",
    "reference model": "grpo.reference=host, grpo.beta=0, or model.lora, which needs none",
    "rollout copy": "deepspeed.zero_stage=2",
    "weights while loading": "model.torch_dtype=bfloat16; more GPUs do not make it less",
    "activations of the longest row": "model.gradient_checkpointing=true, or a smaller pack.budget_tokens",
    "images of the step's prompts": "smaller data.max_pixels, grpo.prompts_per_step or grpo.dynamic_sampling_max_draws",
    "images of the fullest row": "smaller data.max_pixels or pack.budget_tokens",
    "images of a pass before the rollout": "a smaller pack.budget_tokens, or data.max_pixels",
    "loss of the longest row": "a smaller pack.budget_tokens",
    "rollout's keys and values": "a smaller rollout.cache_gib",
}


@dataclass(frozen=True)
class Load:
    """What the data asks for. `assumed`: nobody has looked; rows are full, and half of their tokens are images'."""

    row_tokens: int  # of the longest row
    image_tokens: int  # of the row that has most
    prompt_tokens: float  # of the mean prompt
    assumed: bool = False

    @classmethod
    def full(cls, config: Config) -> Load:
        budget = config.pack.budget_tokens
        return cls(budget, budget // 2, min(budget, config.data.max_length) / 2, assumed=True)


@dataclass(frozen=True)
class Line:
    """One line of an estimate. `value` in GiB or in hours. `when`: only in this part of a step."""

    name: str
    value: float
    formula: str
    when: str = ""


def memory(stage: str, config: Config, shape: Shape, load: Load, gpus: int) -> list[Line]:
    """GiB on one GPU at the fullest moment of a step, line by line, the sum last."""
    lines = [*_held(stage, config, shape, load, gpus), *_update(stage, config, shape, load, gpus)]
    if stage == "grpo":
        lines.append(_rollout(config, shape, load, gpus))
    if config.deepspeed.zero_stage == 3:
        lines.append(_loading(stage, config, shape))
    moments = ("", "update", "rollout", "ref", "tower", "load")
    parts = {when: sum(line.value for line in lines if line.when == when) for when in moments}
    held, loading = parts.pop(""), parts.pop("load")
    fullest = max(parts, key=lambda when: parts[when])
    total = max(held + parts[fullest], loading)
    most = f"what is always held, and the {fullest}'s, which are most" if total > loading else "what the loading takes"
    lines.append(Line("reserve", total * RESERVE, f"{RESERVE:.0%}: workspace, communication, fragmentation"))
    lines.append(Line("sum", total * (1 + RESERVE), most))
    return [Line(line.name, line.value / GIB, line.formula, line.when) for line in lines]


def _held(stage: str, config: Config, shape: Shape, load: Load, gpus: int) -> list[Line]:
    """What lies there all the time, as DeepSpeed's wrappers hold it."""
    width, zero = _width(config), config.deepspeed.zero_stage
    everything, trained = shape.language + shape.vision + shape.adapters, shape.trained
    over = {level: gpus if zero >= level else 1 for level in (1, 2, 3)}

    def split(level: int) -> str:
        return f" / {over[level]} GPUs" if over[level] > 1 else ""

    summed, moments = _summed(config), 12 if zero else 8
    what = "AdamW's two moments and fp32 weights" if zero else "AdamW's two moments"
    own = f"{_giga(trained)} trained"
    held = f"{_giga(everything)} parameters x {width} bytes"
    gone = "" if zero == 3 or _summed_apart(config) else "update"  # else they are given back after each step
    lines = [
        Line("weights", everything * width / over[3], held + split(3)),
        Line("gradients", trained * summed / over[2], f"{own} x {summed} bytes{split(2)}", gone),
    ]
    offloaded = offload_device(config.deepspeed.config)
    formula, value = f"{own} x {moments} bytes ({what}){split(1)}", trained * moments / over[1]
    if offloaded is not None:
        formula, value = f"on {offloaded}: {value / GIB:.3g} GiB = {formula}", 0.0
    lines.append(Line("optimizer", value, formula))
    if stage != "grpo":
        return lines
    if config.grpo.beta > 0:
        lines.append(_reference(config, shape, width))
    if not shape.vision_trained:
        lines.append(_features(config, shape, load, gpus))
    if zero == 3:
        plain = shape.language + shape.vision
        lines.append(Line("rollout copy", plain * width, f"{_giga(plain)} parameters x {width} bytes (ZeRO 3)"))
    return lines


def _loading(stage: str, config: Config, shape: Shape) -> Line:
    """Before the first step: ZeRO 3 divides a model that lies on each GPU whole, beside stage 2's copy of it."""
    copies, width = 2 if stage == "grpo" else 1, _width(config)
    everything = shape.language + shape.vision + shape.adapters
    formula = f"{copies} x {_giga(everything)} parameters x {width} bytes, before ZeRO 3 divides them"
    return Line("weights while loading", copies * everything * width, formula, "load")


def _reference(config: Config, shape: Shape, width: int) -> Line:
    kind = config.grpo.reference
    if kind == "auto" and config.model.lora is not None:
        return Line("reference model", 0.0, "none: the policy with its adapters off")
    own = shape.language + (shape.vision if shape.vision_trained else 0)
    if kind == "host":
        vocabulary, heads = shape.vocab * shape.hidden, 1 if shape.tied else 2
        units = [vocabulary] * heads + [(shape.language - vocabulary * heads) // shape.layers] * shape.layers
        units += [shape.vision // shape.vision_depth] * shape.vision_depth if shape.vision_trained else []
        locked = sum(page_locked(unit * width) for unit in units) / GIB
        formula = (
            f"2 buffers of the largest module, {_giga(max(units))} parameters x {width} bytes; {locked:.3g} GiB of"
        )
        formula += " host memory for each rank, page-locked, each module rounded up to a power of two"
        return Line("reference model", 2 * max(units) * width, formula, "ref")
    shared = "" if shape.vision_trained else "; the vision tower is shared"
    return Line("reference model", own * width, f"{_giga(own)} parameters x {width} bytes (grpo.beta > 0{shared})")


def _features(config: Config, shape: Shape, load: Load, gpus: int) -> Line:
    """What a frozen tower made of the prompts' images: kept for all draws of the step, and once more in its rows."""
    prompts, times = -(-config.grpo.prompts_per_step // gpus), config.grpo.dynamic_sampling_max_draws + 1
    value = times * prompts * load.prompt_tokens * shape.hidden * shape.feature_levels * _width(config)
    formula = (
        f"{times} x {prompts} prompts of at most {load.prompt_tokens:,.0f} image tokens x {shape.hidden} x "
        f"{shape.feature_levels} x {_width(config)} bytes: of grpo.dynamic_sampling_max_draws draws, and in the rows"
    )
    return Line("images of the step's prompts", value, formula)


def _update(stage: str, config: Config, shape: Shape, load: Load, gpus: int) -> list[Line]:
    """What comes and goes with forward, backward and optimizer step."""
    width, lines = _width(config), []
    largest = _largest_step(config, shape, gpus)
    if largest is not None:
        lines.append(largest)
    tokens, each = load.row_tokens, 6 * shape.hidden + 2 * shape.kv + 4 * shape.intermediate
    if config.model.gradient_checkpointing:
        value = tokens * (shape.layers * shape.hidden + each) * width
        formula = f"{tokens:,} tokens x ({shape.layers} layers x {shape.hidden} + {each:,} of one) x {width} bytes"
    else:
        value = tokens * shape.layers * each * width
        formula = f"{tokens:,} tokens x {shape.layers} layers x {each:,} numbers x {width} bytes"
    formula += " (hidden x 6 + kv x 2 + intermediate x 4)" + (", if a row is full" if load.assumed else "")
    lines.append(Line("activations of the longest row", value, formula, "update"))
    lines.append(_images(stage, config, shape, load, gpus))
    rows = min(tokens, LOGIT_ROWS)
    head = shape.vocab * shape.hidden * 4 if shape.head_trains else 0
    value = 2 * tokens * shape.hidden * width + rows * shape.vocab * width + head
    formula = f"2 x {tokens:,} x {shape.hidden} and {rows:,} rows of logits x {shape.vocab:,}, x {width} bytes"
    formula += f", and the vocabulary's gradient x 4 bytes ({head / GIB:.3g} GiB)" if head else ""
    lines.append(Line("loss of the longest row", value, formula + "; never all logits", "update"))
    return lines


def _largest_step(config: Config, shape: Shape, gpus: int) -> Line | None:
    """ZeRO flattens and casts one optimizer group's gradients at a time; BF16_Optimizer holds them flat already."""
    summed = _summed(config)
    if config.deepspeed.zero_stage == 0 or _summed_apart(config):
        return None
    each = 4 + (summed if summed < 4 else 0)
    value = shape.largest_group * each / gpus
    formula = f"{_giga(shape.largest_group)} x {each} bytes / {gpus} GPUs: the largest optimizer group's, in its turn"
    return Line("gradients of one group", value, formula, "update")


def _images(stage: str, config: Config, shape: Shape, load: Load, gpus: int) -> Line:
    """In the update; a frozen tower sees all of stage 2's prompts before the rollout, in passes of a row's length."""
    name, when, tokens, width = "images of the fullest row", "update", float(load.image_tokens), _width(config)
    if stage == "grpo" and not shape.vision_trained:
        name, when = "images of a pass before the rollout", "tower"
        tokens = min(-(-config.grpo.prompts_per_step // gpus) * load.prompt_tokens, config.pack.budget_tokens)
    patches = int(tokens) * shape.merge**2
    each = 8 * shape.vision_width + 2 * shape.vision_intermediate
    kept = shape.vision_trained and not config.model.freeze_vision_tower and not config.model.gradient_checkpointing
    depth = shape.vision_depth if kept else 1
    value = patches * (shape.patch_values * 4 + depth * each * width)
    formula = f"{patches:,} patches x ({shape.patch_values} x 4 bytes + {depth} layers x {each:,} x {width} bytes)"
    return Line(name, value, formula, when)


def _rollout(config: Config, shape: Shape, load: Load, gpus: int) -> Line:
    prompts, each = -(-config.grpo.prompts_per_step // gpus), config.grpo.num_generations
    tokens = prompts * (load.prompt_tokens + each * config.grpo.max_completion_length)
    width = _width(config)
    formula = (
        f"2 x {shape.layers} layers x {shape.kv} x {width} bytes x {tokens:,.0f} tokens "
        f"({prompts} prompts of {load.prompt_tokens:,.0f} and {each} x {config.grpo.max_completion_length})"
        f", at most rollout.cache_gib={config.rollout.cache_gib:g}"
    )
    cache = min(2 * shape.layers * shape.kv * width * tokens, config.rollout.cache_gib * GIB)
    return Line("rollout's keys and values", cache, formula, "rollout")


def told(stage: str, lines: Sequence[Line], device_gib: float | None, load: Load) -> list[str]:
    """For the console: one line where it fits, and what to set where it does not."""
    total = lines[-1].value
    parts = ", ".join(f"{line.name} {line.value:.3g}" for line in lines[:-2] if line.value)
    assumed = ", where rows are full" if load.assumed else ""
    head = f"memory of {stage}: {total:.3g} GiB a rank by formula{assumed} ({parts})"
    if device_gib is None or total <= device_gib:
        return [head if device_gib is None else f"{head}; the device has {device_gib:.3g}"]
    worst = sorted((line for line in lines if line.name in KNOBS), key=lambda line: -line.value)[:3]
    found = [f"warning: {head}: more than the {device_gib:.3g} GiB of the device. The largest, and what would help:"]
    return found + [f"  {line.value:8.3g}  {line.name} = {line.formula}: {KNOBS[line.name]}" for line in worst]


def tell_memory(stage: str, config: Config, vocab: dict[str, int], device: torch.device) -> None:
    """Print the estimate of a stage that is about to begin, on rank 0."""
    if not distributed.is_main():
        return
    load = Load.full(config)
    lines = memory(stage, config, shape_of(config.model, vocab), load, distributed.world_size())
    gib = torch.cuda.get_device_properties(device).total_memory / GIB if device.type == "cuda" else None
    print(*told(stage, lines, gib, load), sep="\n", flush=True)


def _width(config: Config) -> int:
    return 2 if config.model.torch_dtype == "bfloat16" else 4


def _summed(config: Config) -> int:
    """Bytes of a gradient that rows are summed in."""
    given = config.deepspeed.config.get("data_types", {}).get("grad_accum_dtype", "fp32")
    return 2 if _width(config) == 2 and given in ("bf16", "bfloat16") else 4


def _summed_apart(config: Config) -> bool:
    """Whether DeepSpeed's BF16_Optimizer is at work, which keeps the sum of gradients in fp32 buffers of its own."""
    offloaded = offload_device(config.deepspeed.config) is not None
    return config.deepspeed.zero_stage == 1 and _width(config) == 2 and _summed(config) == 4 and not offloaded


def _giga(number: int) -> str:
    return f"{number / 1e9:.3g} G"
