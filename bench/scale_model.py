"""What a GRPO step costs by formula: seconds of each phase on one of `gpus` like devices, from rates of its operations.

The FLOPs are those of the metric `mfu` (univg_fast/train/throughput.py), the memory that of the trainer's own estimate
(univg_fast/train/memory.py). Here is what stands between them and seconds; ASSUMPTIONS says it in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from univg_fast.config import Config
from univg_fast.packing.plan import GroupSize, pack
from univg_fast.packing.report import tally
from univg_fast.train.shapes import Shape
from univg_fast.train.throughput import StepFlops

from .scale_counts import BACKWARD, FORWARD, MOVED, Pass

SWEEPS = 16  # over a decode step's fp32 logits: softmax, top-k, drawing
BUCKET = 5e8  # bytes of one collective


@dataclass(frozen=True)
class Rates:
    """Of one device. FLOP/s and bytes/s (read + written)."""

    matmul: float  # products of a row's tokens
    few: float  # products of as many rows as are decoded at once
    attention: float
    head: float  # the vocabulary's products with their loss
    elementwise: float  # bytes/s of what is no product, in a layer
    memory: float  # bytes/s of a copy
    optimizer: float  # bytes/s of what an optimizer step does: copies, norm, clipping, AdamW
    call: float  # seconds that an operation takes beside its work
    host: float = 0.0  # seconds a prompt: planning, scoring, metrics (python -m bench.overhead)


@dataclass(frozen=True)
class Links:
    """What a GPU sends in a second to its neighbours in the machine, and to another machine. Bytes/s."""

    node: float
    network: float
    gpus_per_node: int = 8
    latency: float = 20e-6  # seconds, of a hop
    overlap: float = 0.0  # share of the communication that hides behind computing
    imbalance: float = 0.05  # what the busiest rank has to do beyond the mean one


@dataclass(frozen=True)
class Load:
    """What one GPU has to do in a step: `prompts` groups, all alike."""

    prompts: int
    images: int
    image_tokens: int
    text: int
    generations: int
    response: int

    def groups(self, merge: int = 2) -> list[GroupSize]:
        patches = self.image_tokens * merge**2
        prompt = self.images * (self.image_tokens + 2) + self.text
        size = GroupSize(prompt, (self.response,) * self.generations, self.images * patches, self.images * patches**2)
        return [size] * self.prompts


ASSUMPTIONS = (
    "phases follow one another: sampling, reference, update, optimizer; rows of a GPU, too",
    "FLOPs are those of docs/metrics.md; a layer's products, its attention, the vocabulary's products and the tower's "
    "each at a rate of their own; a backward pass is two forward ones, of attention 2.5 (flash attention makes the "
    "scores again); checkpointing adds one forward pass",
    f"what is no product moves {FORWARD.hidden} x hidden + {FORWARD.intermediate} x intermediate numbers a token and "
    f"layer forward, {BACKWARD.hidden} and {BACKWARD.intermediate} backward: nothing of it is fused",
    "a decode step takes the longer of its products and of reading all weights, then each prompt's keys and values "
    f"once, each response's own, and {SWEEPS} sweeps over its fp32 logits; all responses have the full length",
    "bytes a trained parameter that an optimizer step moves on one of n ranks, and a row's gradients: "
    + "; ".join(f"ZeRO {zero} {m.text[0]}, {m.text[1]}" for zero, m in MOVED.items()),
    "collectives are rings: (n - 1) / n of the bytes at the slower of the two links, in buckets of 0.5 GB with a hop's "
    "latency for each doubling of n; ZeRO 0 and 1 sum gradients on all ranks once a step, in fp32, 2 in every row, in "
    "bf16; 1 and 2 then gather the weights; ZeRO 3 scatters gradients in every row, and gathers all weights twice a "
    "row and once for the rollout, which needs only those that train",
    "the number of prompts a GPU is fixed: more GPUs make a larger step",
)


def predict(
    flops: StepFlops,
    shape: Shape,
    config: Config,
    groups: Sequence[GroupSize],
    rates: Rates,
    links: Links,
    gpus: int = 1,
) -> dict[str, float]:
    """Seconds of a step of stage 2 by phase: gen, ref, update, optim, comm, wait, host. The tower is frozen."""
    width = 2 if config.model.torch_dtype == "bfloat16" else 4
    reference = config.grpo.beta > 0
    units = 1 + reference + 3  # forward passes that `flops` has: sampling, reference, update (its backward is two)
    rows = pack([g.tokens for g in groups], config.pack.budget_tokens)
    counts = tally(groups, [[groups[i] for i in row] for row in rows], config.pack.budget_tokens)
    scored = sum(sum(g.responses) for g in groups)

    def layers(way: Pass, tokens: float, pairs: float, rows: int) -> float:
        products = way.products * flops.token / units * tokens / rates.matmul
        attended = way.attention * flops.pair / units * pairs / rates.attention
        sweeps = (way.hidden * shape.hidden + way.intermediate * shape.intermediate) * shape.layers * width * tokens
        return products + attended + sweeps / rates.elementwise + rows * way.calls * shape.layers * rates.call

    head = flops.target / units * scored / rates.head  # one product of the three
    whole, back = (layers(way, counts["group_tokens"], counts["pairs"], len(rows)) for way in (FORWARD, BACKWARD))
    prompts = sum(g.prompt for g in groups)
    tower = flops.patch * counts["patches"] / rates.matmul + flops.patch_pair * counts["patch_pairs"] / rates.attention
    tower += FORWARD.calls * shape.vision_depth * rates.call
    again = 1 if config.model.gradient_checkpointing else 0
    found = {
        "gen": tower + layers(FORWARD, prompts, sum(g.prompt * (g.prompt + 1) / 2 for g in groups), 1),
        "ref": (whole + head) if reference else 0.0,
        "update": (1 + again) * whole + back + 3 * head,
    }
    step, sums = moved(shape, config, len(rows), gpus)
    found["optim"], found["update"] = step / rates.optimizer, found["update"] + sums / rates.memory
    found["gen"] += decode(flops, units, shape, groups, width, rates)
    found["comm"] = communication(shape, config, len(rows), width, links, gpus) * (1 - links.overlap)
    found["wait"] = links.imbalance * (found["ref"] + found["update"]) if gpus > 1 else 0.0
    found["host"] = rates.host * len(groups)
    return found


def moved(shape: Shape, config: Config, rows: int, gpus: int) -> tuple[float, float]:
    """Bytes of a rank: of the optimizer's step, and of summing its rows' gradients."""
    zero = config.deepspeed.zero_stage
    of = MOVED[zero]
    step = of.step + of.share / gpus + (of.mean if gpus > 1 else 0)
    added = rows if zero else rows - 1  # fp32 gradients of the first row are the sum
    return step * shape.trained, (of.row + of.row_share / gpus) * added * shape.trained


def decode(flops: StepFlops, units: int, shape: Shape, groups: Sequence[GroupSize], width: int, rates: Rates) -> float:
    """All responses of a GPU at once, a token of each in every step."""
    at_once, steps = sum(len(g.responses) for g in groups), max(max(g.responses) for g in groups)
    each = (flops.token + flops.target) / units  # FLOPs of a token in one forward pass; a weight has two
    seconds = 0.0
    for t in range(steps):
        reads = each / 2 * width + 2 * shape.kv * shape.layers * width * (sum(g.prompt for g in groups) + at_once * t)
        pairs = sum(len(g.responses) * (g.prompt + t + 1) for g in groups)
        attended = flops.pair / units * pairs / rates.attention
        seconds += max(each * at_once / rates.few + attended, reads / rates.memory)
    sampling = SWEEPS * at_once * shape.vocab * 4 / rates.memory + FORWARD.calls * shape.layers * rates.call
    return seconds + steps * sampling


def communication(shape: Shape, config: Config, rows: int, width: int, links: Links, gpus: int) -> float:
    """Seconds of a step's collectives, none of them hidden."""
    if gpus == 1:
        return 0.0
    zero, trained = config.deepspeed.zero_stage, shape.trained
    everything = shape.language + shape.vision + shape.adapters
    sent = {
        0: [2.0 * trained * 4],
        1: [2.0 * trained * 4, trained * float(width)],
        2: [2.0 * trained * width] * rows + [trained * float(width)],
        3: [everything * float(width)] * (2 * rows + 1) + [trained * float(width)] * rows,
    }[zero]
    rate = links.node if gpus <= links.gpus_per_node else min(links.node, links.network)
    hops = math.ceil(math.log2(gpus)) * links.latency
    return sum(n * (gpus - 1) / gpus / rate + math.ceil(n / BUCKET) * hops for n in sent)
