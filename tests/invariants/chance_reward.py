"""A reward that tells a random model's completions apart: 0, 1/2 or 1 by a checksum of the text."""

from __future__ import annotations

from typing import Any
from zlib import crc32


def chance(answers: Any) -> list[float]:
    return [crc32(text.encode()) % 3 / 2 for text in answers.texts]
