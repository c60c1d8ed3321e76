"""The update of a GRPO step on packed rows against separate sequences, and what each lever is worth, in one run:

    python -m bench.step [--device cpu|cuda] [--size full|half|tiny|2b|7b] [--response 64] [--rounds 3]
                         [--budget SECONDS] [--only NAME ...] [--out FILE.jsonl]

Reference log-probs, then the policy's forward and backward pass, of 2 prompts with 3 images and 8 responses each; the
tower is frozen. "separate sequences" is transformers' own model on a padded batch for each prompt, with a copy of the
prompt and its pixels for each response, logits of the response only, and the loss in plain torch. Then all levers on,
and each turned off alone. First the proof: every variant's loss and gradients are those of the separate sequences.
Only then times, in turns. A variant that is wrong ends the command with 1.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .device import Device, find_device
from .harness import measure, stamp, summarise
from .rollout import Size
from .run import save
from .step_packed import Levers, update
from .step_problem import SHAPES, Problem, make_problem
from .step_separate import separate

TARGET = 5.0  # times faster than separate sequences
NOTHING = {"wall_p50_s": float("nan"), "cpu_p50_s": float("nan")}  # of a variant that --only leaves out
TOLERANCE = 1e-4  # of the loss, and relative of each parameter's gradient

VARIANTS: dict[str, Levers | None] = {
    "separate sequences": None,
    "univg": Levers(),
    "prompt not shared": Levers(prompt_shared=False),
    "vision not once": Levers(vision_once=False),
    "logits of all tokens": Levers(target_rows=False),
    "not packed": Levers(packing=False),
    "loss not fused": Levers(fused_loss=False),
}


def call(p: Problem, levers: Levers | None) -> tuple[torch.Tensor, Any]:
    """(loss, the model that has the gradients)."""
    model = p.plain if levers is None else p.model.model
    model.zero_grad(set_to_none=True)
    return (separate(p) if levers is None else update(p, levers)), model


def gradients(p: Problem, levers: Levers | None) -> tuple[float, dict[str, torch.Tensor]]:
    loss, model = call(p, levers)
    return float(loss), {name: x.grad.float() for name, x in model.named_parameters() if x.grad is not None}


def in_float32(p: Problem) -> tuple[float, dict[str, torch.Tensor]]:
    """The separate sequences of the same weights: what bfloat16 rounds is measured by it."""
    dtype = p.plain.dtype
    for model in (p.plain, p.plain_reference):
        model.to(torch.float32)
    truth = gradients(p, None)
    for model in (p.plain, p.plain_reference):
        model.to(dtype)
    return truth


def prove(p: Problem, names: list[str]) -> dict[str, float]:
    """Worst relative difference of each variant from `in_float32`, of loss and gradients; SystemExit where one is more
    than 1e-4 and twice what the separate sequences differ by in their own dtype, which in float32 is nothing."""
    want, truth = in_float32(p)

    def error(levers: Levers | None) -> float:
        loss, found = gradients(p, levers)
        worst = max(float((found[k] - x).norm() / x.norm().clamp(min=1e-12)) for k, x in truth.items())
        return max(worst, abs(loss - want) / max(1.0, abs(want)))

    limit, errors = 2 * error(None) + TOLERANCE, {}
    for name in names:
        errors[name] = error(VARIANTS[name])
        if not errors[name] <= limit:
            raise SystemExit(f"{name}: loss or a gradient is off by {errors[name]:.1e}, expected at most {limit:.1e}")
    return errors


def run(size: Size, device: Device, rounds: int, seconds: float, names: list[str]) -> list[dict[str, Any]]:
    """A row for each variant: `times_wall`, `times_cpu` faster than separate sequences, `cost` over all levers on."""
    dtype = torch.bfloat16 if size.hidden >= 1024 else torch.float32
    p = make_problem(size, device.torch, dtype)
    errors = prove(p, names)
    calls: Any = {name: lambda name=name: lambda: call(p, VARIANTS[name]) for name in names}
    samples, failures = measure(calls, device, "hot", rounds, seconds)
    if failures:
        raise SystemExit(str(failures))
    found = {name: summarise(s) for name, s in samples.items()}
    base, best = (found.get(name, NOTHING) for name in ("separate sequences", "univg"))
    prompt = float(np.mean([len(g.sample.prompt_ids) for g in p.groups]))
    return [
        {"bench": "step", "variant": name, **vars(size), "dtype": str(dtype), "prompt_tokens": prompt}
        | {"attention": p.model.attention.name, **row}
        | {f"times_{clock}": base[f"{clock}_p50_s"] / row[f"{clock}_p50_s"] for clock in ("wall", "cpu")}
        | {"cost": row["wall_p50_s"] / best["wall_p50_s"], "error": errors[name]}
        | {"seconds_per_prompt": row["wall_p50_s"] / size.prompts}
        for name, row in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--size", choices=tuple(SHAPES), default="full", help="tiny: to try the code, not the machine")
    parser.add_argument("--response", type=int, help="tokens of a response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for the timing")
    parser.add_argument("--only", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device, size = find_device(args.device), SHAPES[args.size]
    size = replace(size, tokens=args.response or size.tokens)
    rows = run(size, device, args.rounds, args.budget, args.only)
    print(f"{'':22}  seconds  x separate  x its CPU  cost of off   peak MiB   error")
    for row in rows:
        line = f"{row['variant']:22}  {row['wall_p50_s']:7.2f}  {row['times_wall']:10.2f}  {row['times_cpu']:9.2f}"
        line += f"  {row['cost']:11.2f}"
        print(f"{line}  {row['peak_bytes'] / 2**20:9.0f}  {row['error']:.0e}")
    if args.size == "full" and "univg" in args.only:
        times = next(row["times_wall"] for row in rows if row["variant"] == "univg")
        print(f"univg: {times:.2f} times as fast as separate sequences, {TARGET:g} asked")
    if args.out:
        save(args.out, rows, stamp(device))


if __name__ == "__main__":
    main()
