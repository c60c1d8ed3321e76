"""Rollout against transformers' generate on one small Qwen2-VL, in one run:

    python -m bench.rollout [--device cpu|cuda] [--size full|half|tiny] [--rounds 3] [--budget SECONDS]
                            [--out FILE.jsonl]

4 prompts with 3 images of 196 tokens, 8 completions of each, 32 tokens. First the proof: greedy tokens of every variant
equal those of `generate`, and sampled log-probs those of the training pass to 1e-4. Only then times, in turns. A
variant that is wrong ends the command with 1. `generate` gives no log-probs here, which a trainer would still need.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.model import PackedModel
from univg_fast.model.attention import TEXT, VISION
from univg_fast.model.families.qwen2_vl import CLASSES, SMALL
from univg_fast.model.patches import repeat_frames
from univg_fast.packing import build_row
from univg_fast.rollout import LocalEngine, Sampling
from univg_fast.structs import Completion, Group, Record, Sample

from .device import Device, find_device
from .harness import measure, stamp, summarise
from .run import save

IMAGE, START, END, VIDEO, PAD = range(5)  # token ids; words follow
TARGET, GAP = 2.0, 1e-4  # times faster than the fastest generate; |log-prob difference|


@dataclass(frozen=True)
class Size:
    """`side`: patches along an image's side. `text`: tokens of words in the shortest prompt; each next has 7 more."""

    prompts: int = 4
    images: int = 3
    group: int = 8
    tokens: int = 32
    side: int = 28
    text: int = 30
    hidden: int = 512
    layers: int = 6
    vocab: int = 32_000


HALF = {"prompts": 2, "tokens": 24}  # where time is short (bench.suite)
SIZES = {
    "full": Size(),
    "half": Size(**HALF),
    "tiny": Size(prompts=2, images=2, group=2, tokens=4, side=4, hidden=64, layers=1, vocab=300),
}


def make_model(size: Size, device: torch.device) -> tuple[PackedModel, Any]:
    """The same random weights twice: under this package, and as transformers made it."""
    text = {"hidden_size": size.hidden, "intermediate_size": 3 * size.hidden, "num_hidden_layers": size.layers}
    text |= {"num_attention_heads": size.hidden // 64, "num_key_value_heads": max(1, size.hidden // 256)}
    text |= {"vocab_size": size.vocab, "bos_token_id": PAD, "eos_token_id": None, "pad_token_id": PAD}
    vision = {"depth": size.layers, "embed_dim": size.hidden // 2, "hidden_size": size.hidden}
    raw = {**SMALL, "text_config": SMALL["text_config"] | text, "vision_config": SMALL["vision_config"] | vision}
    ids = {"image": IMAGE, "video": VIDEO, "vision_start": START, "vision_end": END}
    raw["text_config"]["rope_parameters"] = SMALL["text_config"]["rope_parameters"] | {"mrope_section": [8, 12, 12]}
    config = CLASSES[0](**raw, **{f"{name}_token_id": value for name, value in ids.items()})
    torch.manual_seed(0)
    faces = {"text_config": TEXT, "vision_config": VISION}
    with device:  # numbers of a large model are drawn there
        plain = CLASSES[1]._from_config(config, attn_implementation="sdpa").eval()
        ours = CLASSES[1]._from_config(deepcopy(config), attn_implementation=faces)
    ours.load_state_dict(plain.state_dict())
    return PackedModel(ours.to(device)).eval(), plain.to(device)


def make_samples(size: Size) -> list[Sample]:
    rng, tokens = np.random.default_rng(0), size.side**2 // 4
    samples = []
    for i in range(size.prompts):
        ids = [x for _ in range(size.images) for x in (START, *[IMAGE] * tokens, END, *rng.integers(5, size.vocab, 2))]
        ids += list(rng.integers(5, size.vocab, size.text - 4 * size.images + 7 * i))
        grid = np.array([(1, size.side, size.side)] * size.images)
        pixels = rng.standard_normal((size.images * size.side**2, 3 * 14**2)).astype(np.float32)
        record = Record(f"u{i}", f"bench:{i}", (), "question")
        samples.append(Sample(record, np.array(ids), grid, pixels, ((0, 0),) * size.images))
    return samples


Roll = Callable[[int, Sampling], np.ndarray]  # (G, how) -> tokens [prompts * G, new]


def generate(model: Any, batches: list[list[Sample]]) -> Roll:
    """transformers' own, on batches of prompts padded on the left, with the same bans and no early stop."""

    def inputs(samples: list[Sample]) -> dict[str, torch.Tensor]:
        longest = max(len(s.prompt_ids) for s in samples)
        ids = torch.tensor([[PAD] * (longest - len(s.prompt_ids)) + s.prompt_ids.tolist() for s in samples])
        pixels = torch.cat([repeat_frames(torch.from_numpy(s.pixel_values), 2) for s in samples])
        grids = torch.from_numpy(np.concatenate([s.image_grid_thw for s in samples]))
        both = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "mm_token_type_ids": (ids == IMAGE).int()}
        return {k: v.to(model.device) for k, v in (both | {"pixel_values": pixels, "image_grid_thw": grids}).items()}

    prepared = [inputs(samples) for samples in batches]

    def roll(group: int, how: Sampling) -> np.ndarray:
        found = []
        for batch in prepared:
            model.model.rope_deltas = None
            sample = {"do_sample": True, "top_k": 0, "num_return_sequences": group} if how.temperature else {}
            out = model.generate(
                **batch,
                **{"do_sample": False, **sample},
                max_new_tokens=how.max_new_tokens,
                suppress_tokens=[IMAGE, VIDEO, START, END],
            )
            found.append(out[:, batch["input_ids"].shape[1] :].cpu().numpy())
        return np.concatenate(found)

    return roll


def ours(engine: LocalEngine, samples: list[Sample]) -> Roll:
    def roll(group: int, how: Sampling) -> np.ndarray:
        return np.stack([c.token_ids for g in engine.generate(samples, group, how) for c in g])

    return roll


def logprob_gap(model: PackedModel, samples: list[Sample], found: list[list[Completion]]) -> float:
    """Largest |log-prob when sampled - log-prob in a packed training row|."""
    groups = [Group(s, tuple(c.token_ids for c in g)) for s, g in zip(samples, found, strict=True)]
    row = build_row(groups, model.family, attention=model.attention.face).to(model.device)

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (hidden @ weight.T).log_softmax(-1).gather(-1, row.target_ids[:, None])[:, 0]

    with torch.no_grad():
        trained = model(row, head).cpu().numpy()
    return float(np.abs(trained - np.concatenate([c.logprobs for g in found for c in g])).max())


def prove(rolls: dict[str, Roll], size: Size, engine: LocalEngine, samples: list[Sample]) -> dict[str, float]:
    """{"logp_gap": …}; SystemExit where a variant's tokens or the log-probs are wrong."""
    greedy = {name: roll(1, Sampling(size.tokens, temperature=0)) for name, roll in rolls.items()}
    first, want = next(iter(greedy.items()))
    for name, got in greedy.items():
        if not np.array_equal(got, want):
            raise SystemExit(f"{name}: {(got == want).mean():.1%} of the greedy tokens are those of {first}")
    gap = logprob_gap(engine.model, samples, engine.generate(samples, size.group, Sampling(size.tokens)))
    if not gap <= GAP:
        raise SystemExit(f"log-probs differ from the training pass by {gap:.1e}, expected at most {GAP:.0e}")
    return {"logp_gap": gap}


def run(size: Size, device: Device, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each variant, `times_wall` and `times_cpu` faster than the fastest generate."""
    model, plain = make_model(size, device.torch)
    samples, tokenizer = make_samples(size), build_tokenizer(["x"])
    engines = {static: make_engine(model, tokenizer, static) for static in (False, True)}
    rolls = {
        "generate, a prompt at a time": generate(plain, [[s] for s in samples]),
        "generate, one padded batch": generate(plain, [samples]),
        "univg": ours(engines[False], samples),
        "univg, static buffers": ours(engines[True], samples),
    }
    proof = prove(rolls, size, engines[False], samples)
    how = Sampling(size.tokens, seed=1)
    variants: Any = {name: lambda roll=roll: lambda: roll(size.group, how) for name, roll in rolls.items()}
    samples_of, failures = measure(variants, device, "hot", rounds, seconds)
    if failures:
        raise SystemExit(str(failures))
    summaries = {name: summarise(found) for name, found in samples_of.items()}
    rows = []
    for name, summary in summaries.items():
        row = {"bench": "rollout", "variant": name, **vars(size), "prompt_tokens": [len(s.prompt_ids) for s in samples]}
        for clock in ("wall", "cpu"):
            fastest = min(s[f"{clock}_p50_s"] for n, s in summaries.items() if n.startswith("generate"))
            row[f"times_{clock}"] = fastest / summary[f"{clock}_p50_s"]
        rows.append(row | summary | proof | {"samples_s": [round(s.seconds, 4) for s in samples_of[name]]})
    return rows


def make_engine(model: PackedModel, tokenizer: PreTrainedTokenizerFast, static: bool) -> LocalEngine:
    return LocalEngine(model, tokenizer, stop_token_id=-1, static=static)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="tiny: to try the code, not the machine")
    parser.add_argument("--rounds", type=int, default=3, help="that count, after one to warm up")
    parser.add_argument("--budget", type=float, default=400.0, help="seconds after which no round above 3 begins")
    parser.add_argument("--out", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    device = find_device(options.device)
    rows = run(SIZES[options.size], device, options.rounds, options.budget)
    print(f"greedy tokens equal, log-probs within {rows[0]['logp_gap']:.1e} of training's")
    for row in rows:
        for clock in ("wall", "cpu"):
            name = f"{row['variant']}, {clock}"
            print(f"{name:36} {row[clock + '_p50_s']:7.2f} s {row['times_' + clock]:5.2f}x")
    if options.out:
        save(options.out, rows, stamp(device))
    best = max(row["times_wall"] for row in rows if row["variant"].startswith("univg"))
    if options.size == "full" and best < TARGET:
        raise SystemExit(f"rollout: expected at least {TARGET:g}x of the fastest generate, got {best:.2f}x")


if __name__ == "__main__":
    main()
