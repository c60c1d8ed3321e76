"""What a GRPO step would take past one machine: seconds and memory by formula, from rates that are given or measured.

    python -m bench.scale [--models 2b 7b 72b] [--gpus 8 64 1024] [--zero 1 3] [--images 4] [--generations 8] ...
    python -m bench.scale --check [--size full|tiny] [--out FILE.jsonl]

Nothing that it prints for GPUs is measured: it is arithmetic on the rates in the first lines, which are parameters. A
run of `make gpu` among the results takes the place of those that it has. All assumptions are printed.

`--check` holds the same formula against a step that can be measured here: on one CPU thread the rates of the single
operations are measured, then a whole step of the trainer (bench/scale_check.py), and both stand side by side.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from univg_fast.model.families.qwen2_vl import CLASSES
from univg_fast.packing.plan import pack
from univg_fast.train import memory
from univg_fast.train.shapes import Shape, shape_of
from univg_fast.train.throughput import StepFlops

from .overhead import RATE
from .overhead_work import SHAPE, TEXT, VISION, config_of, step_flops
from .results import FOLDER, newest
from .scale_model import ASSUMPTIONS, Links, Load, Rates, predict

LARGE: dict[str, Any] = {"tie_word_embeddings": False, "vocab_size": 152_064}
MODELS = {  # Qwen2-VL's published shapes: (language model, tower)
    "2b": (TEXT, VISION),
    "7b": (
        TEXT
        | LARGE
        | {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4},
        VISION | {"hidden_size": 3584},
    ),
    "72b": (
        TEXT
        | LARGE
        | {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80}
        | {"num_attention_heads": 64, "num_key_value_heads": 8},
        VISION | {"hidden_size": 8192},
    ),
}
PHASES = ("gen", "ref", "update", "optim", "comm", "wait", "host")
Row = dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    model: str
    gpus: int
    zero: int
    seconds: dict[str, float]
    gib: float
    prompts_per_second: float

    @property
    def step(self) -> float:
        return sum(self.seconds.values())


@cache
def model_of(name: str) -> tuple[Shape, StepFlops]:
    """Of a model whose weights are never made, frozen as the recipe says."""
    text, vision = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        made = CLASSES[0](text_config=text, vision_config=vision, tie_word_embeddings=text["tie_word_embeddings"])
        made.save_pretrained(folder)
        return shape_of(replace(config_of("grpo").model, path=folder), {}), step_flops("grpo", text, vision)


def estimate(model: str, gpus: int, zero: int, load: Load, rates: Rates, links: Links) -> Estimate:
    """The recipe univg_r1_stage2 with this load, on so many GPUs."""
    config, (shape, flops) = config_of("grpo"), model_of(model)
    grpo = replace(config.grpo, prompts_per_step=load.prompts * gpus, num_generations=load.generations)
    grpo = replace(grpo, max_completion_length=load.response)
    config = replace(config, grpo=grpo, deepspeed=replace(config.deepspeed, zero_stage=zero))
    groups = load.groups(shape.merge)
    seconds = predict(flops, shape, config, groups, rates, links, gpus)
    rows = [[groups[i] for i in row] for row in pack([g.tokens for g in groups], config.pack.budget_tokens)]
    longest = max(rows, key=lambda row: sum(g.tokens for g in row))
    images = load.images * load.image_tokens
    asked = memory.Load(sum(g.tokens for g in longest), len(longest) * images, images)
    gib = memory.memory("grpo", config, shape, asked, gpus)[-1].value
    return Estimate(model, gpus, zero, seconds, gib, load.prompts * gpus / sum(seconds.values()))


def given_rates(options: argparse.Namespace, folder: Path = FOLDER) -> tuple[Rates, str]:
    """(rates of a GPU, where they are from): what was asked for, else a measured GPU's, else SHEET."""
    measured, source = {}, "parameters; nothing of it is measured"
    if "cuda" in (found := newest(folder)) and any(row["status"] == "timed" for row in found["cuda"][1]):
        path, rows = found["cuda"]
        timed = [row for row in rows if row["status"] == "timed" and row["dtype"] == "bf16"]
        linear = [r["gemm_share"] for r in timed if r["op"] == "linear_grpo_loss" and r["own"]]
        measured = {"matmul": timed[0]["ceiling_gemm_flops_per_s"], "memory": timed[0]["ceiling_copy_bytes_per_s"]}
        measured["head"] = measured["matmul"] * (linear[0] if linear else 1.0)
        source = f"{rows[0]['hardware']}, ceilings measured in {path.name}; attention, calls and links are parameters"
    asked = {"matmul": options.matmul_tflops, "memory": options.memory_tbs}
    rates = SHEET | measured | {name: value * 1e12 for name, value in asked.items() if value is not None}
    matmul, memory_rate = rates["matmul"], rates["memory"]
    work = newest(folder, "overhead").get("cpu", (None, []))[1]
    counted = [row for row in work if row["where"] == "2b" and row["stage"] == "grpo"]
    host = counted[0]["ours_s"] / counted[0]["num_samples"] if counted else 0.0
    attention = options.attention_share * matmul
    found_head = rates.get("head", matmul)
    return Rates(matmul, matmul, attention, found_head, memory_rate, memory_rate, memory_rate, 3e-6, host), source


def lines(rates: Rates, source: str, links: Links, load: Load, found: list[Estimate], gib: float) -> Iterator[str]:
    tera = {name: getattr(rates, name) / 1e12 for name in ("matmul", "head", "attention", "memory")}
    yield f"a prediction from rates: {source}"
    yield "  TFLOP/s: " + ", ".join(f"{name} {tera[name]:.0f}" for name in ("matmul", "head", "attention"))
    yield f"  memory {tera['memory']:.2f} TB/s; {rates.call * 1e6:.0f} us an operation of a decode step"
    yield f"  {rates.host * 1e3:.1f} ms of host work a prompt; the busiest rank {links.imbalance:.0%} behind the mean"
    yield f"  links {links.node / 1e9:.0f} GB/s within {links.gpus_per_node} GPUs, {links.network / 1e9:.0f} beyond"
    yield f"  {links.latency * 1e6:.0f} us a hop; {links.overlap:.0%} of the communication is hidden"
    yield f"  a GPU has {load.prompts} prompts: {load.images} images x {load.image_tokens} tokens, {load.text} of text,"
    yield f"  {load.generations} completions of {load.response} each; otherwise the recipe univg_r1_stage2"
    yield from (f"  assumed: {text}" for text in ASSUMPTIONS)
    yield ""
    names = " ".join(f"{name:>7}" for name in PHASES)
    yield f"{'model':5} {'GPUs':>5} {'ZeRO':>4} {'step s':>8} {'prompts/s':>9} {'GiB a GPU':>9}  {names}"
    for e in found:
        room = "" if e.gib <= gib else f"  more than {gib:g} GiB"
        shares = " ".join(f"{e.seconds[name] / e.step:7.1%}" for name in PHASES)
        head = f"{e.model:5} {e.gpus:5} {e.zero:4} {e.step:8.2f} {e.prompts_per_second:9.2f} {e.gib:9.1f}"
        yield f"{head}  {shares}{room}"


# Half of what an H100's data sheet has for bf16 products, as in bench.overhead, and 0.8 of its memory's rate.
SHEET = {"matmul": RATE, "memory": 2.7e12}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64, 256, 1024])
    parser.add_argument("--zero", nargs="+", type=int, choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--prompts", type=int, default=2, help="a GPU and step")
    parser.add_argument("--images", type=int, default=SHAPE["images"], help="of a prompt")
    parser.add_argument("--image-tokens", type=int, default=512)
    parser.add_argument("--text", type=int, default=SHAPE["text_tokens"])
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--response", type=int, default=256, help="tokens of a completion")
    parser.add_argument("--matmul-tflops", type=float, help="bf16 products as they are reached")
    parser.add_argument("--attention-share", type=float, default=0.5, help="of that rate")
    parser.add_argument("--memory-tbs", type=float, help="TB/s read + written")
    parser.add_argument("--node-gbs", type=float, default=360.0, help="GB/s a GPU sends within its machine")
    parser.add_argument("--network-gbs", type=float, default=40.0, help="GB/s a GPU sends to another machine")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--latency-us", type=float, default=20.0)
    parser.add_argument("--overlap", type=float, default=0.0, help="share of the communication that is hidden")
    parser.add_argument("--imbalance", type=float, default=0.05)
    parser.add_argument("--gib", type=float, default=80.0, help="of a GPU's memory")
    parser.add_argument("--check", action="store_true", help="predicted against measured, on this CPU")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="of --check; tiny: to try the code")
    parser.add_argument("--rounds", type=int, default=3, help="of --check")
    parser.add_argument("--out", type=Path, help="of --check: write its row to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.check:
        from .scale_check import check

        check(options.size, options.rounds, options.out)
        return
    rates, source = given_rates(options)
    links = Links(options.node_gbs * 1e9, options.network_gbs * 1e9, options.gpus_per_node, options.latency_us * 1e-6)
    links = replace(links, overlap=options.overlap, imbalance=options.imbalance)
    load = Load(
        options.prompts, options.images, options.image_tokens, options.text, options.generations, options.response
    )
    found = [
        estimate(model, gpus, zero, load, rates, links)
        for model in options.models
        for gpus in options.gpus
        for zero in options.zero
    ]
    print(*lines(rates, source, links, load, found, options.gib), sep="\n")


if __name__ == "__main__":
    main()
