"""What packing saves and what it leaves over: sums that each rank makes of its step, and figures of all ranks' sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from univg_fast.packing.plan import GroupSize


def tally(
    groups: Sequence[GroupSize], rows: Sequence[Sequence[GroupSize]], budget: int, spare_tokens: int = 0
) -> dict[str, float]:
    """One rank's sums over a step: its `groups`, and its `rows` of them or their parts.

    `spare_tokens`: of rows that stand in with weight 0, so that all ranks make equally many passes.
    """
    sequences = [group.prompt + n for group in groups for n in group.responses]
    lengths = [sum(size.tokens for size in row) for row in rows]
    return {
        "groups": float(len(groups)),
        "group_tokens": float(sum(group.tokens for group in groups)),
        "pairs": float(sum(group.pairs for group in groups)),
        "patches": float(sum(group.patches for group in groups)),
        "patch_pairs": float(sum(group.patch_pairs for group in groups)),
        "packed_tokens": float(sum(lengths)),
        "separate_tokens": float(sum(sequences)),
        "padded_tokens": float(max(sequences, default=0) * len(sequences)),
        "spare_tokens": float(spare_tokens),
        "room": float(sum(max(n, budget) for n in lengths)),
        "rows": float(len(rows)),
        "over_budget": float(sum(n > budget for n in lengths)),
        "cost": float(sum(size.cost for row in rows for size in row)),
    }


def figures(total: Mapping[str, float], dearest: float, ranks: int) -> dict[str, float]:
    """Metrics from the sums of all ranks; `dearest`: the largest "cost" of any of them, or of each optimizer step."""
    packed, spare = total["packed_tokens"], total["spare_tokens"]

    def share(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    return {
        "num_samples": total["groups"],
        "group_tokens": total["group_tokens"],  # each prompt once, in however many rows its group lies
        "packed_tokens": packed,
        "dense_tokens": total["separate_tokens"],  # what one sequence for each response would have
        "attention_pairs": total["pairs"],
        "patches": total["patches"],
        "patch_pairs": total["patch_pairs"],
        "pack/fill": share(packed, total["room"]),
        # of the tokens of one sequence per response: each with its own copy of the prompt, and padded to the longest
        "pack/shared": share(total["separate_tokens"] - packed, total["separate_tokens"]),
        "pack/saved": share(total["padded_tokens"] - packed, total["padded_tokens"]),
        "pack/padding": share(spare, packed + spare),
        "pack/imbalance": share(dearest * ranks - total["cost"], total["cost"]),
        "pack/rows": total["rows"],
        "pack/over_budget": total["over_budget"],
    }
