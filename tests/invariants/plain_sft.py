"""Stage 1 as one would write it with transformers and torch alone: what the trainer's trajectory is compared with.

A forward and backward pass for each sample by transformers' own model with its own attention, logits of every token,
torch's cross entropy, clipping and AdamW. Of this package: the samples, and the first weights.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from univg_fast.config import Config
from univg_fast.data.loader import SampleLoader
from univg_fast.model import load_model
from univg_fast.model.patches import repeat_frames
from univg_fast.structs import Sample
from univg_fast.train.setup import Inputs


def loss_of(model: Any, sample: Sample) -> torch.Tensor:
    """Summed cross entropy of the response."""
    assert sample.response_ids is not None
    prompt, response = torch.from_numpy(sample.prompt_ids), torch.from_numpy(sample.response_ids)
    ids = torch.cat([prompt, response])[None]
    out = model(
        input_ids=ids,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        pixel_values=repeat_frames(torch.from_numpy(sample.pixel_values), 2),
        image_grid_thw=torch.from_numpy(sample.image_grid_thw),
        use_cache=False,
    )
    return F.cross_entropy(out.logits[0, len(prompt) - 1 : -1], response, reduction="sum")


def train(config: Config, inputs: Inputs, folder: Path) -> None:
    """metrics.jsonl and hf/sft in `folder`, as the command leaves them."""
    optim, steps = config.sft, config.sft.max_steps or 0
    model: Any = load_model(
        config.model.path,
        vocab=inputs.processor.tokenizer.get_vocab(),
        seed=config.run.seed + config.model.init_seed,
    ).train()
    model.set_attn_implementation("eager")
    matrices, vectors = ([p for p in model.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = (optim.adam_beta1, optim.adam_beta2)
    adamw = torch.optim.AdamW(groups, lr=optim.learning_rate, betas=betas, eps=optim.adam_epsilon, foreach=False)
    warmup = math.ceil(optim.warmup_ratio * steps)
    loader: SampleLoader[None] = SampleLoader(
        inputs.records["sft"], inputs.processor, optim.per_step_samples, seed=config.run.seed, with_response=True
    )
    with loader, (folder / "metrics.jsonl").open("w") as file:
        for step in range(steps):
            samples = loader.batch(step).samples
            tokens = sum(len(s.response_ids) for s in samples if s.response_ids is not None)
            cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
            rate = optim.learning_rate * ((step + 1) / warmup if step < warmup else cosine)
            for group in adamw.param_groups:
                group["lr"] = rate
            adamw.zero_grad()
            loss = 0.0
            for sample in samples:
                each = loss_of(model, sample) / tokens
                each.backward()
                loss += each.item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
            adamw.step()
            row = {"stage": "sft", "step": step + 1, "loss": loss, "grad_norm": norm.item(), "learning_rate": rate}
            file.write(json.dumps(row | {"scored_tokens": tokens, "pack/rows": len(samples)}) + "\n")
    model.save_pretrained(folder / "hf" / "sft")
