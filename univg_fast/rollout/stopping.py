"""Where a completion ends: decided on the host, from tokens that may go on past the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stopper:
    """Ends a completion with the token `token_id`, or the first token whose text completes one of `strings`."""

    tokenizer: PreTrainedTokenizerBase
    token_id: int
    strings: tuple[str, ...] = ()

    def end(self, ids: np.ndarray, seen: int) -> int | None:
        """Length of the completion if it ends within ids[seen:], else None. It did not end within ids[:seen]."""
        stops = np.flatnonzero(ids[seen:] == self.token_id)
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
