"""Where a completion ends: decided on the host, from tokens that may go on past the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase


def stop_ids(model: Any, end_of_turn: int) -> tuple[int, ...]:
    """The end-of-turn token, and what else ends a text by the transformers model's generation config.

    Published Qwens name <|endoftext|> beside <|im_end|> there; transformers and vLLM stop at both.
    """
    config = getattr(model, "generation_config", None)
    more = getattr(config, "eos_token_id", None)
    ids = [] if more is None else [more] if isinstance(more, int) else more
    return tuple(dict.fromkeys([end_of_turn, *ids]))


@dataclass(frozen=True)
class Stopper:
    """Ends a completion with one of `token_ids`, or the first token whose text completes one of `strings`."""

    tokenizer: PreTrainedTokenizerBase
    token_ids: tuple[int, ...]
    strings: tuple[str, ...] = ()

    def end(self, ids: np.ndarray, seen: int) -> int | None:
        """Length of the completion if it ends within ids[seen:], else None. It did not end within ids[:seen]."""
        stops = np.flatnonzero(np.isin(ids[seen:], self.token_ids))
        end = seen + int(stops[0]) + 1 if len(stops) else None
        if not self.strings:
            return end
        # A token has at least one byte, so a string of n bytes begins at most n tokens before the one that ends it.
        first = max(0, seen - max(len(s.encode()) for s in self.strings))
        last = len(ids) if end is None else end
        if self._found(ids[first:last]):  # rare, so only now token by token
            return next(n for n in range(seen + 1, last + 1) if self._found(ids[first:n]))
        return end

    def _found(self, ids: np.ndarray) -> bool:
        text = self.text(ids)
        return any(s in text for s in self.strings)

    def text(self, ids: np.ndarray) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))
