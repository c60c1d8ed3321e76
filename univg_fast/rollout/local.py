"""The in-process rollout engine: one packed prefill for all prompts, then one batch of S*G rows, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.packing.rows import Row, build_row
from univg_fast.rollout.cache import DecodeCache, Prefill
from univg_fast.rollout.sampling import Sampling, draw, keep_top, uniforms
from univg_fast.structs import Completion, Group, Sample

STOP_CHECK_EVERY = 8  # tokens between two looks at "has everyone finished": each look waits for the device


class LocalEngine:
    """Generates with the training model's own weights; nothing to synchronise."""

    def __init__(
        self, model: PackedModel, tokenizer: PreTrainedTokenizerBase, stop_token_id: int | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.stop = tokenizer.eos_token_id if stop_token_id is None else stop_token_id

    def generate(
        self,
        samples: Sequence[Sample],
        num_generations: int,
        sampling: Sampling,
        features: ImageFeatures | None = None,
    ) -> list[list[Completion]]:
        """G completions of each sample. `features`: image features of all samples in order, if encoded before."""
        if not samples:
            return []
        with evaluating(self.model):
            row = build_row([Group(s, ()) for s in samples], self.model.family).to(self.model.device)
            tokens, logprobs = self._decode(row, samples, num_generations, sampling, features)
        return self._completions(tokens.cpu().numpy(), logprobs.float().cpu().numpy(), num_generations)

    def _decode(
        self, row: Row, samples: Sequence[Sample], group: int, sampling: Sampling, features: ImageFeatures | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and raw log-probs, both [S * G, steps]; rows go on past their stop token, unread."""
        prefill = Prefill(row.layout)
        hidden = self.model.states(row, features, prefill)
        lengths = [len(s.prompt_ids) for s in samples]
        last = torch.tensor(lengths).cumsum(0).to(hidden.device) - 1
        positions = _following_positions(row, lengths).repeat_interleave(group).to(hidden.device)  # [S*G]
        cache = DecodeCache(prefill, lengths, group, sampling.max_new_tokens)
        chance = uniforms(sampling.seed, [s.record.uid for s in samples], group, sampling.max_new_tokens)
        chance = chance.to(hidden.device)
        hidden = hidden[last].repeat_interleave(group, 0)
        tokens, logprobs = [], []
        done = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        for step in range(sampling.max_new_tokens):
            token, logprob = self._sample(self.model.model.lm_head(hidden).float(), chance[:, step], sampling)
            tokens.append(token)
            logprobs.append(logprob)
            done |= token == self.stop
            if step + 1 == sampling.max_new_tokens or (step % STOP_CHECK_EVERY == 0 and bool(done.all())):
                break
            cache.step = step
            hidden = self.model.step(token, (positions + step)[None, :, None].expand(3, -1, -1), cache)
        return torch.stack(tokens, 1), torch.stack(logprobs, 1)

    def _sample(
        self, logits: torch.Tensor, chance: torch.Tensor, sampling: Sampling
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One token per row, and its log-prob at the sampling temperature before bans, top-k and top-p."""
        scaled = logits / (sampling.temperature or 1.0)
        allowed = scaled.clone()
        allowed[:, list(self.model.family.banned_token_ids)] = float("-inf")
        if sampling.temperature == 0:
            token = allowed.argmax(-1)
        else:
            token = draw(keep_top(allowed, sampling.top_k, sampling.top_p), chance)
        return token, scaled.log_softmax(-1).gather(-1, token[:, None])[:, 0]

    def _completions(self, tokens: np.ndarray, logprobs: np.ndarray, group: int) -> list[list[Completion]]:
        completions = []
        for ids, logp in zip(tokens, logprobs, strict=True):
            stops = np.flatnonzero(ids == self.stop)
            length = int(stops[0]) + 1 if len(stops) else len(ids)
            text = str(self.tokenizer.decode(ids[: length - bool(len(stops))], skip_special_tokens=False))
            completions.append(
                Completion(ids[:length].copy(), logp[:length].copy(), "stop" if len(stops) else "length", text)
            )
        return [completions[i : i + group] for i in range(0, len(completions), group)]


def _following_positions(row: Row, lengths: list[int]) -> torch.Tensor:
    """Largest mRoPE position of each prompt + 1, [S] (the prompts stand one after the other in the row)."""
    per_token = row.position_ids[:, 0].amax(0)
    return torch.stack([part.amax() for part in per_token.split(lengths)]) + 1


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """eval() and no gradients inside; the training mode is put back after."""
    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was)
