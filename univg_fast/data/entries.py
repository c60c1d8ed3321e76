"""What an entry of data.sft, data.grpo and data.eval may say. Knows no torch: the configuration is read without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .coordinates import SYSTEMS

STYLES = ("univg_r1", "bbox_2d", "box_tokens")  # forms of the boxes in an answer
ENTRY_KEYS = ("path", "weight", "image_root", "coordinates", "answer_style", "cot")


def check_entry(entry: Any) -> Mapping[str, Any]:
    """A data entry as a mapping; ValueError says what is wrong with it."""
    if isinstance(entry, (str, Path)):
        return {"path": str(entry)}
    if not isinstance(entry, Mapping) or "path" not in entry or set(entry) - set(ENTRY_KEYS):
        raise ValueError(f"expected a path or a mapping of {', '.join(ENTRY_KEYS)} (path is required), got {entry!r}")
    weight = entry.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1000:
        raise ValueError(f"weight: expected a number above 0 up to 1000, got {weight!r}")
    for key, known in (("coordinates", SYSTEMS), ("answer_style", STYLES)):
        if entry.get(key) is not None and entry[key] not in known:
            raise ValueError(f"{key}: expected one of {', '.join(known)}, got {entry[key]!r}")
    if not isinstance(entry.get("cot"), (bool, type(None))):
        raise ValueError(f"cot: expected true or false, got {entry['cot']!r}")
    return entry
