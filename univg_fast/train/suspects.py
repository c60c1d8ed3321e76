"""Whose losses were not finite, in a step that nothing came of."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def suspects(losses: torch.Tensor, uids: Sequence[Sequence[str]]) -> list[str]:
    """The names in rows whose loss is not finite. `losses`: of this rank's rows [R], and of rows that stood in.

    Waits for the device.
    """
    finite = losses.isfinite().tolist()
    return [name for names, sound in zip(uids, finite, strict=False) if not sound for name in names]
