"""What a stage will take, by formula: every line carries its formula, and what is assumed is said, not measured."""

from __future__ import annotations

from dataclasses import dataclass

from univg_fast.check.packed import Packing
from univg_fast.config import Config
from univg_fast.train.making import batch_size, total_steps
from univg_fast.train.memory import Line, Load
from univg_fast.train.shapes import Shape


@dataclass(frozen=True)
class Machine:
    """What the user says of the machine; nothing of it is measured here."""

    gpus: int = 8
    gpu_gib: float = 80.0
    tflops: float = 200.0  # sustained by one GPU in training
    tokens_per_second: float | None = None  # trained by one GPU: a console's by its number of GPUs; over tflops
    decode_tokens_per_second: float = 1000.0  # sampled by one GPU, over all its completions


def load_of(packing: Packing) -> Load:
    """What the memory of a GPU depends on, of the packed epoch."""
    mean = (packing.tokens / max(1, packing.groups)) - packing.generations * packing.response_tokens
    return Load(packing.longest_row, packing.largest_images, mean)


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
