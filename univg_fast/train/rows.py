"""From a step's groups to this rank's packed rows on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from univg_fast import distributed
from univg_fast.model import Family
from univg_fast.packing import Row, build_row, plan_rows
from univg_fast.structs import Group

Phases = Callable[[str], AbstractContextManager[None]]  # names and times a part of a step


def group_length(group: Group) -> int:
    """Tokens that a group takes in a row: its prompt once and every response."""
    return len(group.sample.prompt_ids) + sum(len(r) for r in group.responses)


def pack_groups(groups: Sequence[Group], family: Family, budget_tokens: int, device: torch.device) -> list[Row]:
    """Rows of whole groups; `Row.groups` are indices into `groups`."""
    plan = plan_rows([group_length(g) for g in groups], budget_tokens)
    return [build_row([groups[i] for i in indices], family, indices).to(device) for indices in plan]


def rows_needed(count: int, zero_stage: int) -> int:
    """Backward passes of this rank: at least one, and as many as any rank's where ZeRO communicates in each."""
    return max(1, distributed.equal_row_count(count) if zero_stage >= 2 else count)


def room(rows: Sequence[Row], budget_tokens: int) -> int:
    """Tokens that these rows could have held; a row over the budget counts as full."""
    return sum(max(r.num_tokens, budget_tokens) for r in rows)
