"""Texts as the C++ ops take them: the UTF-8 of all behind one another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

CHUNK = 256  # texts that are copied at once: they stay in the cache


def as_bytes(texts: Sequence[str]) -> tuple[bytes, Tensor, Tensor]:
    """(the bytes, the same as uint8, offsets [n+1] int64 of the texts in them)."""
    if all(map(str.isascii, texts)):
        lengths, code = list(map(len, texts)), "".join(texts).encode("ascii")
    else:
        codes = [text.encode("utf-8", "surrogatepass") for text in texts]
        lengths, code = list(map(len, codes)), b"".join(codes)
    text = torch.frombuffer(bytearray(code), dtype=torch.uint8) if code else torch.zeros(0, dtype=torch.uint8)
    return code, text, torch.tensor([0, *accumulate(lengths)])
