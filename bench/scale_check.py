"""`bench.scale --check`: rates of single operations on one CPU thread, a step predicted from them, and the step itself.

CPU seconds throughout, so that other work on the machine counts little. The step is the trainer's own (bench.trl_ours):
a small Qwen2-VL in fp32, from image files to the optimizer. First the proof: the counts that the formula goes by are
those that the step logs.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import univg_kernels as uk

from univg_fast.data.samples import make_processor
from univg_fast.packing.plan import GroupSize
from univg_fast.structs import Sample
from univg_fast.train.shapes import Shape, shape_of
from univg_fast.train.throughput import StepFlops

from .device import Cpu
from .harness import once, stamp
from .rollout import Size, make_model
from .run import save
from .scale_counts import FORWARD, MOVED
from .scale_model import Links, Rates, predict
from .trl_ours import Ours
from .trl_problem import make_records, make_tokenizer

SIZES = {
    "full": Size(hidden=256, layers=4, vocab=16_000),  # bench.trl_step's
    "tiny": Size(prompts=2, images=2, group=4, tokens=8, side=16, hidden=128, layers=2, vocab=2_000),
}
PHASES = ("gen", "ref", "update", "optim")
BOUND = 2.0  # predicted over measured, either way; beyond it the command fails
HEAD = 64  # width of an attention head in bench.rollout's models


def cpu_seconds(run: Callable[[], Any], rounds: int = 3) -> float:
    run()
    return statistics.median(once(lambda: run, Cpu(), "fresh").cpu_seconds for _ in range(rounds))


def products(shape: Shape, tokens: int) -> float:
    """FLOP/s of a decoder layer's products, of so many tokens."""
    h, kv, inner = shape.hidden, shape.kv, shape.intermediate
    sizes = [(h, h), (h, h), (h, kv), (h, kv), (h, inner), (h, inner), (inner, h)]
    pairs = [(torch.randn(tokens, a), torch.randn(b, a)) for a, b in sizes]
    return 2.0 * tokens * sum(a * b for a, b in sizes) / cpu_seconds(lambda: [F.linear(x, w) for x, w in pairs])


def attention(shape: Shape, prompt: int) -> float:
    """FLOP/s of the pairs that count, of a prompt: scores and sums, forward."""
    q, k, v = (torch.randn(1, shape.hidden // HEAD, prompt, HEAD) for _ in range(3))
    seconds = cpu_seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return 4.0 * shape.hidden * prompt * (prompt + 1) / 2 / seconds


def head(shape: Shape, rows: int) -> float:
    """FLOP/s of the fused head, forward and backward."""
    hidden, weight = torch.randn(rows, shape.hidden), torch.randn(shape.vocab, shape.hidden) * 0.02
    ids, ends = torch.randint(0, shape.vocab, (rows,)), torch.tensor([0, rows])
    hidden.requires_grad_(), weight.requires_grad_()

    def run() -> None:
        out = uk.linear_grpo_loss(hidden, weight, ids, ends, advantages=torch.ones(1), config=uk.GrpoConfig(beta=0.0))
        torch.autograd.grad(out.loss, [hidden, weight])

    return 6.0 * rows * shape.vocab * shape.hidden / cpu_seconds(run)


def elementwise(shape: Shape, tokens: int) -> float:
    """Bytes/s of a layer's norms, rotation, gate and sums, one operation after the other."""
    x, gain = torch.randn(tokens, shape.hidden), torch.randn(shape.hidden)
    a, b = torch.randn(tokens, shape.intermediate), torch.randn(tokens, shape.intermediate)

    def run() -> None:
        for _ in range(2):  # norms and residual sums
            x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain + x
        half = x.chunk(2, -1)
        x * gain + torch.cat([-half[1], half[0]], -1) * gain  # rotation
        F.silu(a) * b

    return (30 * shape.hidden + 5 * shape.intermediate) * 4.0 * tokens / cpu_seconds(run)


def memory_rate(shape: Shape) -> float:
    """Bytes/s of a copy."""
    source = torch.randn(shape.trained)
    target = torch.empty_like(source)
    return 8.0 * shape.trained / cpu_seconds(lambda: target.copy_(source))


def optimizer_rate(shape: Shape) -> float:
    """Bytes/s of what a step in fp32 does, each operation by itself: the gradients flattened, copied back, their norm,
    clipped, AdamW."""
    weight = torch.nn.Parameter(torch.randn(shape.trained))
    weight.grad = torch.randn_like(weight)
    parts, flat = weight.grad.split(shape.hidden**2), torch.empty_like(weight.grad)
    adamw = torch.optim.AdamW([weight], fused=True)
    operations: list[Callable[[], Any]] = [lambda: torch.cat(parts), lambda: weight.grad.copy_(flat)]
    operations += [lambda: torch.linalg.vector_norm(weight.grad), lambda: weight.grad.mul_(1.0), adamw.step]
    return MOVED[0].step * shape.trained / sum(map(cpu_seconds, operations))


def call_seconds() -> float:
    """Of an operation of a layer on a single token and next to no numbers, with its share of the modules around it."""
    token = torch.zeros(1, 1, 64)

    def seconds(layers: int) -> float:
        model = make_model(Size(hidden=64, layers=layers, vocab=300), torch.device("cpu"))[1].model.language_model
        with torch.inference_mode():
            return cpu_seconds(lambda: [model(inputs_embeds=token, use_cache=False) for _ in range(20)]) / 20

    return (seconds(5) - seconds(1)) / 4 / FORWARD.calls


def measure_rates(shape: Shape, groups: list[GroupSize]) -> Rates:
    tokens, prompt = sum(g.tokens for g in groups), groups[0].prompt
    scored, at_once = sum(sum(g.responses) for g in groups), sum(len(g.responses) for g in groups)
    return Rates(
        matmul=products(shape, tokens),
        few=products(shape, at_once),
        attention=attention(shape, prompt),
        head=head(shape, scored),
        elementwise=elementwise(shape, tokens),
        memory=memory_rate(shape),
        optimizer=optimizer_rate(shape),
        call=call_seconds(),
    )


def sizes_of(samples: list[Sample], size: Size) -> list[GroupSize]:
    found = []
    for s in samples:
        areas = s.image_grid_thw.prod(-1)
        prompt, patches = len(s.prompt_ids), int(areas.sum())
        found.append(GroupSize(prompt, (size.tokens,) * size.group, patches, int((areas**2).sum())))
    return found


def compare(size: Size, rounds: int) -> dict[str, Any]:
    """One row: predicted and measured CPU seconds of each of PHASES and of the step, and the rates."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records, tokenizer = make_records(size, folder), make_tokenizer(size)
        plain = make_model(size, torch.device("cpu"))[1]
        plain.save_pretrained(folder / "model")
        ours = Ours(
            size, folder / "model", records, make_processor(tokenizer, prompt_template="short"), plain.state_dict()
        )
        model = ours.config.model.__class__(path=str(folder / "model"))
        shape = shape_of(model, {})
        groups, flops = sizes_of(ours.samples, size), StepFlops.of(ours.policy, "grpo", ours.config)
        metrics = ours()
        counted = {"group_tokens": sum(g.tokens for g in groups), "attention_pairs": sum(g.pairs for g in groups)}
        counted |= {"patches": sum(g.patches for g in groups), "patch_pairs": sum(g.patch_pairs for g in groups)}
        wrong = {k: (v, metrics[k]) for k, v in counted.items() if metrics[k] != v}
        if wrong:
            raise SystemExit(f"bench.scale: the step logged other counts than the formula goes by: {wrong}")
        steps = []
        for _ in range(rounds):
            sample = once(lambda: ours, Cpu(), "fresh")
            phases = ours.phases | {"update": ours.phases["update"] - ours.phases["optim"]}
            steps.append({name: phases[name] / sample.seconds * sample.cpu_seconds for name in PHASES})
            steps[-1]["step"] = sample.cpu_seconds
        rates = measure_rates(shape, groups)
        predicted = predict(flops, shape, ours.config, groups, rates, Links(1.0, 1.0))
    measured = {name: statistics.median(step[name] for step in steps) for name in (*PHASES, "step")}
    whole = {"predicted_s": sum(predicted[p] for p in PHASES), "measured_s": sum(measured[p] for p in PHASES)}
    return {
        "bench": "scale",
        **vars(size),
        "rounds": rounds,
        "predicted": {name: predicted[name] for name in PHASES},
        "measured": measured,
        "rates": vars(rates),
        **whole,
        "times": whole["predicted_s"] / whole["measured_s"],
    }


def check(size: str, rounds: int, out: Path | None) -> None:
    torch.set_num_threads(1)
    row = compare(SIZES[size], rounds)
    print("rates measured: " + ", ".join(f"{name} {value:.3g}" for name, value in row["rates"].items() if value))
    print(f"{'phase':8} {'predicted':>10} {'measured':>10}   CPU seconds")
    for name in PHASES:
        predicted, measured = row["predicted"][name], row["measured"][name]
        print(f"{name:8} {predicted:10.3f} {measured:10.3f}   {predicted / measured:.2f}")
    print(f"{'sum':8} {row['predicted_s']:10.3f} {row['measured_s']:10.3f}   {row['times']:.2f}")
    if out:
        save(out, [row], stamp(Cpu()))
    if size == "full" and not 1 / BOUND <= row["times"] <= BOUND:
        raise SystemExit(f"bench.scale: predicted over measured is {row['times']:.2f}, expected within {BOUND:g} times")
