"""The in-process rollout engine: a packed prefill of a batch of prompts, then all their rows, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from univg_fast.data.mix import times_before
from univg_fast.model.features import ImageFeatures
from univg_fast.model.packed import PackedModel
from univg_fast.packing.pinning import pinned, sent
from univg_fast.packing.rows import build_row
from univg_fast.packing.vision import without_pixels
from univg_fast.rollout.batches import Footprint, plan_batches, prefill_rows
from univg_fast.rollout.cache import DecodeCache, Kept, Prefill
from univg_fast.rollout.decode import Decoder
from univg_fast.rollout.sampling import Sampling, uniforms
from univg_fast.rollout.stopping import Stopper, stop_ids
from univg_fast.structs import Completion, Group, Sample

LOOK_EVERY = 8  # tokens between two looks at who has finished: each look waits for the device


class LocalEngine:
    """Generates in this process, with the training model itself or with a copy of it that has its own weights.

    `cache_gib`: keys and values held at once, and what prefill and sampling take beside them; what needs more is
    decoded in several batches, of one prompt at least. `static`: buffers of fixed shapes, and CUDA graphs on a GPU;
    None: on a GPU. `own_weights`: the model is a copy, which `sync_weights` brings up to date; else there is nothing to
    do. `stop_token_id`: what ends a completion; None: `stop_ids` of the tokenizer's end. `should_stop` is asked at each
    look at who has finished: once it says yes, `generate` returns what there is, completions cut short and no
    completions of prompts not begun, to be thrown away.
    """

    def __init__(
        self,
        model: PackedModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_id: int | Sequence[int] | None = None,
        *,
        cache_gib: float = 8.0,
        static: bool | None = None,
        own_weights: bool = False,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        ends = stop_ids(model.model, tokenizer.eos_token_id) if stop_token_id is None else stop_token_id
        self.stop = (ends,) if isinstance(ends, int) else tuple(ends)
        self.cache_bytes, self.static, self.own_weights = int(cache_gib * 2**30), static, own_weights
        self.should_stop = should_stop or (lambda: False)
        self.missing = {name for name, _ in model.model.named_parameters()}  # weights that never came

    def sync_weights(self, buckets: Iterable[Mapping[str, Tensor]]) -> None:
        """See RolloutEngine. ValueError where a weight is unknown, or one of the model's has never come."""
        if not self.own_weights:
            return
        left = dict(self.model.model.named_parameters())
        with torch.no_grad():
            for bucket in buckets:
                for name, weight in bucket.items():
                    if name not in left:
                        raise ValueError(f"sync_weights: expected one of the {len(left)} weights left, got {name!r}")
                    left.pop(name).copy_(weight)
        self.missing &= left.keys()
        if self.missing:
            raise ValueError(f"sync_weights: expected every weight, got none for {sorted(self.missing)[:5]}")

    def generate(
        self,
        samples: Sequence[Sample],
        num_generations: int,
        sampling: Sampling,
        features: Sequence[ImageFeatures] | None = None,
        repeats: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """See RolloutEngine."""
        if num_generations < 1:
            raise ValueError(f"generate: expected num_generations >= 1, got {num_generations}")
        if not samples:  # a rank whose records were all bad
            return []
        uids = [sample.record.uid for sample in samples]
        repeats = times_before(uids) if repeats is None else repeats
        uniform = uniforms(sampling.seed, uids, repeats, num_generations, sampling.max_new_tokens)
        uniform = uniform.view(len(samples), num_generations, -1)
        footprint = Footprint.of(self.model, num_generations, sampling, looks=features is None)
        batches = plan_batches([len(s.prompt_ids) for s in samples], footprint, self.cache_bytes)
        found: dict[int, list[Completion]] = {}
        with evaluating(self.model):
            for batch in batches:
                part = None if features is None else [features[i] for i in batch]
                groups = self._generate([samples[i] for i in batch], uniform[batch], sampling, part)
                found |= zip(batch, groups, strict=True)
                if self.should_stop():
                    break
        return [found.get(i, []) for i in range(len(samples))]

    def _generate(
        self,
        samples: Sequence[Sample],
        uniform: Tensor,
        sampling: Sampling,
        features: Sequence[ImageFeatures] | None,
    ) -> list[list[Completion]]:
        """One batch. `uniform`: [samples, generations, tokens]."""
        decoder, group = self._prefill(samples, uniform, sampling, features), uniform.shape[1]
        stopper = Stopper(self.tokenizer, self.stop, sampling.stop)
        shape = (len(samples) * group, sampling.max_new_tokens)
        tokens, logprobs = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        ends: list[int | None] = [None] * shape[0]
        rows, seen = np.arange(shape[0]), 0  # the decoder's rows, by their number in the batch
        while seen < sampling.max_new_tokens and any(ends[row] is None for row in rows):
            decoder.run(min(LOOK_EVERY, sampling.max_new_tokens - decoder.made))
            made = decoder.made
            tokens[rows, seen:made] = decoder.tokens[:, seen:made].cpu().numpy()
            logprobs[rows, seen:made] = decoder.logprobs[:, seen:made].cpu().numpy()
            for row in rows:
                if ends[row] is None:
                    ends[row] = stopper.end(tokens[row, :made], seen)
            seen = made
            if self.should_stop():
                break
            going = np.flatnonzero([ends[row] is None for row in rows])
            # a captured step is worth keeping until half of its rows are idle
            if 0 < len(going) < len(rows) and (not decoder.cache.static or 2 * len(going) <= len(rows)):
                decoder.keep(going)
                rows = rows[going]
        completions = []
        for ids, logp, end in zip(tokens, logprobs, ends, strict=True):
            last = seen if end is None else end
            ids, logp = ids[:last].copy(), logp[:last].copy()
            text = stopper.text(ids[: len(ids) - int(ids[-1] in self.stop)])
            completions.append(Completion(ids, logp, "length" if end is None else "stop", text))
        return [completions[i : i + group] for i in range(0, len(completions), group)]

    def _prefill(
        self,
        samples: Sequence[Sample],
        uniform: Tensor,
        sampling: Sampling,
        features: Sequence[ImageFeatures] | None,
    ) -> Decoder:
        """The prompts in packed rows, and a decoder that goes on from there with a row for each generation.

        While the device is at one row, the host makes the next: nothing here waits for it.
        """
        group, model, device = uniform.shape[1], self.model, self.model.device
        lengths = [len(s.prompt_ids) for s in samples]
        kept: Kept = {}
        hidden: list[Tensor] = []
        following: list[Tensor] = []  # on the host
        for part in prefill_rows(lengths):
            images, shown = None, [samples[i] for i in part]
            if features is not None:
                images, shown = ImageFeatures.cat([features[i] for i in part]), without_pixels(shown)
            groups = [Group(s, ()) for s in shown]
            row = build_row(groups, model.family, model.attention.face, model.model.model.visual.dtype)
            of = [lengths[i] for i in part]
            following += [p.amax() + 1 for p in row.position_ids[:, 0].split(of, dim=1)]
            row = pinned(row, device).to(device)
            states = model.states(row, images, Prefill(row.layout, of, kept))
            hidden.append(states.index_select(0, sent(torch.tensor(of).cumsum(0) - 1, device)))
        static = device.type == "cuda" if self.static is None else self.static
        return Decoder(
            model,
            DecodeCache(kept, lengths, group, sampling.max_new_tokens, static),
            torch.cat(hidden).repeat_interleave(group, 0),
            sent(torch.stack(following).repeat_interleave(group), device),
            sent(uniform.flatten(0, 1), device),
            sampling,
        )


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
