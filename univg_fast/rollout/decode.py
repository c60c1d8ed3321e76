"""The decode loop's state on the device: B rows, a token each per step, and nothing asked of the device in between."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from univg_fast.model.packed import PackedModel
from univg_fast.packing.pinning import sent
from univg_fast.rollout.cache import DecodeCache
from univg_fast.rollout.sampling import Sampling, choose


class Decoder:
    """`tokens` and `logprobs` [B, L] fill up from the left, one column per step.

    With a static cache most steps are the same work on the same buffers: on a GPU it runs once, is captured into a CUDA
    graph, and is replayed until rows leave or the rows' own positions that a step looks at are full. Each capture waits
    for the device.
    """

    def __init__(
        self, model: PackedModel, cache: DecodeCache, hidden: Tensor, position: Tensor, uniform: Tensor, how: Sampling
    ) -> None:
        """Of each row: the prompt's last hidden state [B, H], the mRoPE position after the prompt [B], and a number
        per token [B, L]. The first tokens are drawn here."""
        self.model, self.cache, self.how = model, cache, how
        self.position, self.uniform = position, uniform
        self.banned = sent(torch.tensor(model.family.banned_token_ids), hidden.device)
        self.at = torch.zeros(1, dtype=torch.int64, device=hidden.device)  # the column that is next
        self.token = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)  # the newest of each row
        self.tokens = torch.zeros(uniform.shape, dtype=torch.int64, device=hidden.device)
        self.logprobs = torch.zeros(uniform.shape, device=hidden.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.made = 1  # columns that are filled, as the host counts them: a replayed step counts for itself
        self._sample(hidden)

    def run(self, steps: int) -> None:
        """`steps` more tokens for every row."""
        for _ in range(steps):
            if self.cache.reach(self.made):
                self.graph = None
            self.made += 1
            if self.graph is not None:
                self.graph.replay()
            elif self.cache.static and self.token.is_cuda and self.made < self.tokens.shape[1]:
                self._step_and_capture()
            else:  # also the last one: nobody would replay it
                self._step()

    def keep(self, rows: np.ndarray) -> None:
        """Only these rows (ascending) go on."""
        self.graph = None  # its memory can then go to the copies of the caches, where the device has no other left
        self.cache.keep(rows)
        index = torch.from_numpy(rows).to(self.token.device)
        for name in ("position", "uniform", "token", "tokens", "logprobs"):
            setattr(self, name, getattr(self, name).index_select(0, index))

    def _step(self) -> None:
        position = self.position[None, :, None].expand(3, -1, -1)
        hidden = self.model.step(self.token, position, self.cache)
        self.cache.advance()
        self.position.add_(1)
        self._sample(hidden)

    def _sample(self, hidden: Tensor) -> None:
        uniform = self.uniform.index_select(1, self.at)[:, 0]
        token, logprob = choose(self.model.model.lm_head(hidden), uniform, self.how, self.banned)
        self.token.copy_(token)
        self.tokens.index_copy_(1, self.at, token[:, None])
        self.logprobs.index_copy_(1, self.at, logprob[:, None])
        self.at.add_(1)

    def _step_and_capture(self) -> None:
        """One real step on a side stream, which sets libraries up, and then the next one recorded, not run."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # loader threads go on meanwhile
            self._step()
