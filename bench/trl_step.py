"""A whole GRPO step of this trainer against TRL's GRPOTrainer, in one run, in fp32, in one process:

    python -m bench.trl_step [--device cpu|cuda] [--size full|half|tiny] [--rounds 2] [--budget SECONDS]
                             [--out FILE.jsonl]

Each step begins with image files and ends with the optimizer: decode, tokenize, 8 completions of each of 4 prompts
with 3 images of 196 tokens, rewards, reference log-probs, forward and backward pass, clip, AdamW. Both have the same
weights (the policy lies some way off the reference), prompts, images, rewards, loss (grpo, beta 0.04), learning rate
and optimizer; the tower is frozen; every completion has exactly 32 tokens, whatever is sampled.

"trl" is the trainer as it comes (bench/trl_trainer.py says which settings). On a CPU its head makes the vocabulary's
logits of every position, prompts included; "trl, head on responses" has it choose the positions as it does on a GPU.
"univg" is `GrpoStep` with `LocalEngine`, a DeepSpeed engine at ZeRO 0 and a loader that neither caches nor works ahead.

First the proof: `GrpoStep` is given the completions that TRL sampled in its first step, and prompts, patches, rewards,
loss and gradient norm have to be TRL's. Then the two take turns. A step of TRL is timed from where ours ended to its
`on_step_end`, one of ours inside of that callback. Full size fails below 4 times TRL's prompts per second.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import TrainerCallback

from univg_fast.data.samples import make_processor
from univg_fast.model.patches import repeat_frames

from .device import Device, Sample, find_device
from .harness import stamp, summarise
from .rollout import Size, make_model
from .run import save
from .trl_ours import Ours, Replay
from .trl_problem import make_records, make_tokenizer
from .trl_trainer import Clock, WatchedTrainer, make_trainer

TARGET, TOLERANCE = 4.0, 1e-4  # times faster; relative difference of loss, gradient norm, reward and KL
FEWEST = 2  # rounds, whatever the budget says
OURS, THEIRS = "univg", ("trl", "trl, head on responses")
PHASES = ("gen", "score", "ref", "update")  # the rest: images, tokens, rows
SIZES = {
    "full": Size(hidden=256, layers=4, vocab=16_000),
    "half": Size(prompts=2, hidden=256, layers=2, vocab=16_000),  # where time is short (bench.suite)
    "tiny": Size(prompts=2, images=2, group=2, tokens=4, side=4, text=20, hidden=64, layers=1, vocab=300),
}


def prove(trainer: WatchedTrainer, ours: Ours) -> dict[str, float]:
    """Ours on what TRL sampled; SystemExit where anything differs."""
    names = ("prompt_ids", "prompt_mask", "completion_ids", "pixel_values")
    batch = {name: torch.cat([part[name] for part in trainer.captured]).cpu() for name in names}
    by_prompt = {s.prompt_ids.tobytes(): s for s in ours.samples}
    patches = batch["pixel_values"].split([len(next(iter(by_prompt.values())).pixel_values)] * len(batch["prompt_ids"]))
    found: dict[bytes, list[np.ndarray]] = defaultdict(list)
    for ids, mask, response, pixels in zip(
        batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], patches, strict=True
    ):
        key = ids[mask.bool()].numpy().tobytes()
        if key not in by_prompt:
            raise SystemExit(f"TRL's prompt is none of ours: {ids[mask.bool()].tolist()}")
        if not torch.equal(pixels, repeat_frames(torch.from_numpy(by_prompt[key].pixel_values), 2)):
            raise SystemExit(f"{by_prompt[key].record.uid}: TRL's patches differ from ours")
        found[key].append(response.numpy())
    metrics = ours(Replay(ours.processor.tokenizer, found))
    theirs = trainer.proof
    errors = {}
    for name, value in theirs.items():
        got = metrics[name.split(",")[0]]
        errors[name] = abs(got / value - 1)
        if not errors[name] <= TOLERANCE:
            raise SystemExit(f"{name}: expected TRL's {value:.8g} within {TOLERANCE:.0e} of it, got {got:.8g}")
    if not (metrics["frac_reward_zero_std"] < 1 and metrics["kl"] > 0):
        raise SystemExit("expected rewards that differ and a policy off its reference: without them nothing is proved")
    return errors


class Turns(TrainerCallback):
    """TRL's loop drives: after each of its steps one of ours. The first proves, the next two warm up."""

    def __init__(self, trainer: WatchedTrainer, ours: Ours, device: Device, seconds: float) -> None:
        self.trainer, self.ours, self.clock = trainer, ours, Clock(device)
        self.timings: dict[str, list[Sample]] = defaultdict(list)
        self.phases: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.errors: dict[str, float] = {}
        self.end = time.monotonic() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        timing, step = self.trainer.clock.stop(), state.global_step
        if step == 1:
            self.errors = prove(self.trainer, self.ours)
        else:
            self._keep(THEIRS[step % 2], timing, self.trainer.phases, step)
            self.clock.start()
            self.ours()
            self._keep(OURS, self.clock.stop(), self.ours.phases, step)
            enough = len(self.timings[OURS]) >= len(THEIRS) * FEWEST and step % 2
            control.should_training_stop |= bool(enough and time.monotonic() > self.end)
        self.trainer.begin(compact=step % 2 == 0)

    def _keep(self, name: str, timing: Sample, phases: dict[str, float], step: int) -> None:
        if step > 1 + len(THEIRS):
            self.timings[name].append(timing)
            self.phases[name].append(dict(phases))


def run(size: Size, device: Device, rounds: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """(a row for each of the three, what this trainer's own check of its rollout said)."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        records, tokenizer = make_records(size, folder), make_tokenizer(size)
        make_model(size, torch.device("cpu"))[1].save_pretrained(folder / "model")
        processor = make_processor(tokenizer, prompt_template="short")
        steps = 1 + len(THEIRS) * (1 + rounds)
        trainer = make_trainer(size, folder / "model", records, processor, steps, folder / "out", device)
        on_gpu = device.kind == "cuda"
        ours = Ours(size, folder / "model", records, processor, trainer.model.state_dict(), on_gpu)
        turns = Turns(trainer, ours, device, seconds)
        trainer.add_callback(turns)
        gc.freeze()
        trainer.begin(compact=False)
        trainer.train()
    found = {name: summarise(timings) for name, timings in turns.timings.items()}
    fastest = {clock: min(found[name][f"{clock}_p50_s"] for name in THEIRS) for clock in ("wall", "cpu")}
    return [
        {"bench": "trl_step", "variant": name, **vars(size), "dtype": "torch.float32"}
        | {"prompt_tokens": float(np.mean([len(s.prompt_ids) for s in ours.samples]))}
        | {**summary, "prompts_per_second": size.prompts / summary["wall_p50_s"]}
        | {f"times_{clock}": least / summary[f"{clock}_p50_s"] for clock, least in fastest.items()}
        | {"errors": turns.errors}
        | {"phases_s": median_phases(turns.timings[name], turns.phases[name])}
        | {"samples_s": [round(t.seconds, 4) for t in turns.timings[name]]}
        for name, summary in found.items()
    ], ours.check


def median_phases(timings: list[Sample], phases: list[dict[str, float]]) -> dict[str, float]:
    """Those of the step whose wall seconds `summarise` calls the median."""
    order = sorted(range(len(timings)), key=lambda i: timings[i].seconds)
    step = phases[order[round(0.5 * (len(order) - 1))]]
    return {name: step[name] for name in PHASES}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{'':24} prompts/s  x wall  x CPU  peak MiB  seconds" + "".join(f"  {name:>7}" for name in (*PHASES, "rest"))
    for row in rows:
        phases = row["phases_s"]
        seconds = [row["wall_p50_s"], *phases.values(), row["wall_p50_s"] - sum(phases.values())]
        line = (
            f"{row['variant']:24} {row['prompts_per_second']:9.3f}  {row['times_wall']:6.2f}  {row['times_cpu']:5.2f}"
        )
        yield f"{line}  {row['peak_bytes'] / 2**20:8.0f}" + "".join(f"  {x:7.3f}" for x in seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="tiny: to try the code, not the machine")
    parser.add_argument("--rounds", type=int, default=2, help="that count, each a step of each of TRL's, two of ours")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds after which no round above 2 begins")
    parser.add_argument("--out", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    device = find_device(options.device)
    rows, check = run(SIZES[options.size], device, max(FEWEST, options.rounds), options.budget)
    errors = "; ".join(f"{name}: {error:.0e}" for name, error in rows[0]["errors"].items())
    print(f"this step on TRL's completions, relative difference of {errors}", check, *table(rows), sep="\n")
    if options.out:
        save(options.out, rows, stamp(device))
    times = next(row["times_wall"] for row in rows if row["variant"] == OURS)
    print(f"univg: {times:.2f} times TRL's prompts per second (its faster variant), {TARGET:g} asked")
    if options.size == "full" and times < TARGET:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
