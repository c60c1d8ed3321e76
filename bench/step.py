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
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from univg_kernels import GrpoConfig, grpo_loss

from univg_fast.loss import grpo_head, logprob_head
from univg_fast.loss.grpo import RowTargets
from univg_fast.model import PackedModel
from univg_fast.model.features import ImageFeatures
from univg_fast.model.patches import repeat_frames
from univg_fast.packing import Row, build_row
from univg_fast.structs import Group

from .device import Device, find_device
from .harness import measure, stamp, summarise
from .rollout import IMAGE, SIZES, Size, make_model, make_samples
from .run import save

TARGET = 5.0  # times faster than separate sequences
NOTHING = {"wall_p50_s": float("nan"), "cpu_p50_s": float("nan")}  # of a variant that --only leaves out
CONFIG = GrpoConfig(beta=0.04)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the loss, and relative of each parameter's gradient
SHAPES = {
    "full": Size(prompts=2, tokens=64, hidden=256, layers=4, vocab=16_000),
    "half": Size(prompts=2, tokens=64, hidden=256, layers=2, vocab=16_000),  # where time is short (bench.suite)
    "tiny": replace(SIZES["tiny"], tokens=5),
    "2b": Size(prompts=2, images=4, side=46, tokens=128, hidden=1536, layers=28, vocab=151_936),
    "7b": Size(prompts=2, images=4, side=46, tokens=128, hidden=3584, layers=28, vocab=152_064),
}


@dataclass(frozen=True)
class Levers:
    """What is on."""

    prompt_shared: bool = True  # off: a copy of the prompt for each response
    vision_once: bool = True  # off: reference and policy encode the images that stand in their rows
    target_rows: bool = True  # off: the vocabulary's logits of every token
    packing: bool = True  # off: a row for each group
    fused_loss: bool = True  # off: log-softmax, ratio, clip and KL in plain torch


VARIANTS: dict[str, Levers | None] = {
    "separate sequences": None,
    "univg": Levers(),
    "prompt not shared": Levers(prompt_shared=False),
    "vision not once": Levers(vision_once=False),
    "logits of all tokens": Levers(target_rows=False),
    "not packed": Levers(packing=False),
    "loss not fused": Levers(fused_loss=False),
}


@dataclass(frozen=True)
class Problem:
    model: PackedModel  # the policy
    reference: PackedModel
    plain: Any  # the same two, as transformers made them
    plain_reference: Any
    groups: list[Group]
    advantages: torch.Tensor  # [K, G]

    @property
    def responses(self) -> float:
        return float(self.advantages.numel())


def make_problem(size: Size, device: torch.device, dtype: torch.dtype) -> Problem:
    model, plain = (m.to(dtype) for m in make_model(size, device))
    for tower in (model.model.model.visual, plain.model.visual):
        tower.requires_grad_(False)
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    groups = [
        Group(s, tuple(rng.integers(5, size.vocab, size.tokens) for _ in range(size.group))) for s in make_samples(size)
    ]
    policy = [deepcopy(m) for m in (model, plain)]
    with torch.no_grad():  # away from the reference, by the same step in both
        for name, p in policy[1].named_parameters():
            if p.requires_grad:
                step = 0.02 * torch.randn(p.shape, generator=generator) * p.std().cpu()
                p.add_(step.to(p))
                policy[0].model.get_parameter(name).copy_(p)
    advantages = torch.randn(len(groups), size.group, generator=generator).to(device)
    return Problem(policy[0], model, policy[1], plain, groups, advantages)


def eager_loss(logp: torch.Tensor, ref_logp: torch.Tensor, advantages: torch.Tensor, weight: torch.Tensor) -> Any:
    """The GRPO loss of tokens [N] in plain torch, as a sum with `weight` each; on policy, so the ratio is 1."""
    ratio, difference = (logp - logp.detach()).exp(), ref_logp - logp
    clipped = ratio.clamp(1 - CONFIG.epsilon_low, 1 + CONFIG.epsilon_high)
    policy = -torch.minimum(ratio * advantages, clipped * advantages)
    return ((policy + CONFIG.beta * (difference.exp() - difference - 1)) * weight).sum()


def update(p: Problem, levers: Levers) -> torch.Tensor:
    """One pass of the reference and one of the policy, forward and backward. Returns the loss."""
    owners = list(range(len(p.groups)))
    groups, advantages = p.groups, list(p.advantages)
    if not levers.prompt_shared:
        owners = [i for i, g in enumerate(p.groups) for _ in g.responses]
        groups = [Group(g.sample, (r,)) for g in p.groups for r in g.responses]
        advantages = list(p.advantages.reshape(-1, 1))
    features = _encode(p) if levers.vision_once else None
    parts = [range(len(groups))] if levers.packing else [[i] for i in range(len(groups))]
    total = p.advantages.new_zeros(())
    for indices in parts:
        row = build_row([groups[i] for i in indices], p.model.family, attention=p.model.attention.face)
        row = row.to(p.model.device)
        own = None if features is None else ImageFeatures.cat([features[owners[i]] for i in indices])
        of_row = torch.cat([advantages[i] for i in indices])
        with torch.no_grad():
            ref_logp = _logp(p.reference, row, own, levers)
        loss = _loss(p, row, own, of_row, ref_logp, levers)
        loss.backward()
        total += loss.detach()
    return total


def _encode(p: Problem) -> list[ImageFeatures]:
    row = build_row([Group(g.sample, ()) for g in p.groups], p.model.family).to(p.model.device)
    with torch.no_grad():
        encoded = p.model.encode_images(row.pixel_values, row.vision)
    return encoded.split([int((g.sample.prompt_ids == IMAGE).sum()) for g in p.groups])


def _eager_logp(model: PackedModel, row: Row, features: ImageFeatures | None, levers: Levers) -> torch.Tensor:
    weight, states = model.model.lm_head.weight, model.states(row, features)
    if levers.target_rows:
        logits = F.linear(states[row.target_rows], weight)
    else:
        logits = F.linear(states, weight)[row.target_rows]
    return logits.float().log_softmax(-1).gather(-1, row.target_ids[:, None])[:, 0]


def _logp(model: PackedModel, row: Row, features: ImageFeatures | None, levers: Levers) -> torch.Tensor:
    if levers.fused_loss and levers.target_rows:
        logp: torch.Tensor = model(row, logprob_head(row, 1.0), features)
        return logp
    return _eager_logp(model, row, features, levers)


def _loss(
    p: Problem, row: Row, features: ImageFeatures | None, advantages: torch.Tensor, ref_logp: torch.Tensor, on: Levers
) -> torch.Tensor:
    if not on.fused_loss:
        lengths = row.cu_seqlens.diff()
        spread = [x.repeat_interleave(lengths) for x in (advantages, 1 / (p.responses * lengths))]
        return eager_loss(_eager_logp(p.model, row, features, on), ref_logp, *spread)
    if not on.target_rows:
        logits = F.linear(p.model.states(row, features), p.model.model.lm_head.weight)[row.target_rows]
        more: dict[str, Any] = {"advantages": advantages, "ref_logp": ref_logp, "denominator": p.responses}
        return grpo_loss(logits, row.target_ids, row.cu_seqlens, config=CONFIG, **more).loss
    targets = RowTargets(advantages, torch.ones_like(advantages), ref_logp)
    loss: torch.Tensor = p.model(row, grpo_head(row, targets, p.responses, CONFIG), features).loss
    return loss


def separate(p: Problem) -> torch.Tensor:
    """As trainers do it today: a batch of G whole sequences for each prompt, with G copies of its pixels."""
    total = p.advantages.new_zeros(())
    for group, advantages in zip(p.groups, p.advantages, strict=True):
        sample, copies = group.sample, len(group.responses)
        ids = np.stack([np.concatenate([sample.prompt_ids, r]) for r in group.responses])
        responses = torch.from_numpy(np.stack(group.responses)).to(p.plain.device)
        pixels = repeat_frames(torch.from_numpy(sample.pixel_values), 2).repeat(copies, 1)
        batch = {
            "input_ids": torch.from_numpy(ids),
            "mm_token_type_ids": torch.from_numpy(ids == IMAGE).int(),
            "pixel_values": pixels.to(p.plain.dtype),
            "image_grid_thw": torch.from_numpy(sample.image_grid_thw).repeat(copies, 1),
        }
        batch = {name: x.to(p.plain.device) for name, x in batch.items()}

        def logp(model: Any, batch: Any = batch, responses: torch.Tensor = responses) -> torch.Tensor:
            logits = model(**batch, use_cache=False, logits_to_keep=responses.shape[1] + 1).logits[:, :-1]
            found: torch.Tensor = logits.float().log_softmax(-1).gather(-1, responses[..., None])[..., 0]
            return found

        with torch.no_grad():
            ref_logp = logp(p.plain_reference)
        weight = torch.full_like(ref_logp, 1 / (p.responses * responses.shape[1]))
        loss = eager_loss(logp(p.plain), ref_logp, advantages[:, None], weight)
        loss.backward()
        total += loss.detach()
    return total


def call(p: Problem, levers: Levers | None) -> tuple[torch.Tensor, Any]:
    """(loss, the model that has the gradients)."""
    model = p.plain if levers is None else p.model.model
    model.zero_grad(set_to_none=True)
    return (separate(p) if levers is None else update(p, levers)), model


def prove(p: Problem, names: list[str]) -> dict[str, float]:
    """Worst relative difference of each variant, of loss and gradients; SystemExit where it is too large."""
    want, model = call(p, None)
    truth = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}
    limit, errors = TOLERANCE[p.plain.dtype], {}
    for name in names:
        loss, model = call(p, VARIANTS[name])
        errors[name] = abs(float(loss - want)) / max(1.0, abs(float(want)))
        for key, gradient in truth.items():
            found = model.get_parameter(key).grad
            errors[name] = max(errors[name], float((found - gradient).norm() / gradient.norm().clamp(min=1e-12)))
        if not errors[name] <= limit:
            raise SystemExit(f"{name}: loss or a gradient differs by {errors[name]:.1e} from separate sequences")
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
