"""The gallery of an evaluation: which samples a page shows, worst first, what their cards say, how it is filtered."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from univg_fast.report.cards import View, in_turn, split_text, spread, views
from univg_fast.report.overlays import Album, Mark

MAX_CARDS = 72
BUDGET = 4_000_000  # bytes of a page's pictures
OUTCOMES = {
    "hit": "IoU of at least 0.5",
    "miss": "IoU below 0.5",
    "unread": "no usable box",
    "elsewhere": "another image named",
}
FAULTS = {
    "no_box": "no box could be read from the answer",
    "bad_box": "the box is not four finite numbers",
    "inverted_box": "the box has no area",
    "bad_iou": "the IoU is no number from 0 to 1",
    "unmatched": "no box of the answer overlaps it in its image",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """A sample of an evaluation; `iou` is the mean over its targets."""

    uid: str
    task: str
    question: str
    iou: float
    outcomes: frozenset[str]
    notes: tuple[str, ...]
    parts: tuple[str, ...]
    views: tuple[View, ...]


@dataclass(frozen=True)
class Choices:
    """What can be filtered for: tasks with (cards, samples), outcomes with cards, and what no card is both of."""

    tasks: dict[str, tuple[int, int]]
    outcomes: dict[str, int]
    empty: tuple[tuple[str, str], ...]


def gallery(rows: Sequence[Row], album: Album) -> list[Card]:
    """Cards of at most MAX_CARDS samples, fewer where the album is full; the lowest IoU first."""
    cards = []
    for sample in chosen(samples(rows))[:MAX_CARDS]:
        if album.full:
            break
        cards.append(card(sample, album))
    return sorted(cards, key=lambda c: c.iou)


def samples(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by sample: one row each, but for samples of several targets."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(sample_of(row), []).append(row)
    return list(found.values())


def sample_of(row: Row) -> str:
    """Its id; rows of several targets name it."""
    return str(row["sample"] if "sample" in row else row["uid"])


def chosen(given: Sequence[list[Row]]) -> list[list[Row]]:
    """The tasks in turn, and of each by turns one of its worst samples and one from all of its range, the best first.

    Samples of equal IoU are in random order (seed 0).
    """
    by_task: dict[str, list[list[Row]]] = {}
    for sample in sorted(random.Random(0).sample(list(given), len(given)), key=mean_iou):
        by_task.setdefault(sample[0]["task"], []).append(sample)
    queues = []
    for task in sorted(by_task):
        many = min(-(-MAX_CARDS // len(by_task)), len(by_task[task]))
        worst, rest = by_task[task][: many // 2], by_task[task][many // 2 :]
        queues.append(in_turn([worst, spread(rest, max(2, many - many // 2))[::-1]]))
    return in_turn(queues)


def mean_iou(sample: Sequence[Row]) -> float:
    return sum(row["iou"] for row in sample) / len(sample)


def card(sample: Sequence[Row], album: Album) -> Card:
    """A card shows all images, each target, and each box in the image in which it was scored."""
    first = sample[0]
    notes, marks = ([first["error"]] if "error" in first else []), []
    outcomes = {"hit" if mean_iou(sample) >= 0.5 else "miss"}
    for row in sample:
        which = f"target {row['uid'].rpartition('#')[2]}: " if len(sample) > 1 else ""
        place = _place(row)
        if row["fault"]:
            outcomes |= set() if row["fault"] == "unmatched" else {"unread"}
            notes.append(
                which + ("nothing answered" if not (row["text"].strip() or row.get("boxes")) else FAULTS[row["fault"]])
            )
        if row["box"] and place is not None:
            marks.append(Mark(place, row["box"], label=f"{which}prediction, IoU {row['iou']:.2f}"))
        elif row["box"]:
            notes.append(f"{which}nobody says which image the box is in, so it is not drawn")
        if row["target_image"] is None and row["gt"]:
            notes.append(f"{which}the data does not say which image holds the target, so it is not drawn")
        if None not in (row["image"], row["target_image"]) and row["image"] != row["target_image"]:
            outcomes.add("elsewhere")
            notes.append(
                f"{which}the answer names image {row['image'] + 1}, the target is in {row['target_image'] + 1}"
            )
    if len(sample) > 1 or "sample" in first:
        notes.append(f"{first['boxes']} boxes answered, {len(sample)} asked for")
    return Card(
        uid=sample_of(first),
        task=first["task"],
        question=first["question"],
        iou=mean_iou(sample),
        outcomes=frozenset(outcomes),
        notes=tuple(notes),
        parts=split_text(first["text"]),
        views=views(first["images"], sample, marks, album),
    )


def _place(row: Row) -> int | None:
    """The image in which a box is shown: where it was scored, or else the one that the answer names."""
    place = row["target_image"] if row["target_image"] is not None else row["image"]
    return place if place is not None and place < len(row["images"]) else None


def choices(cards: Sequence[Card], rows: Sequence[Row], tasks: Iterable[str]) -> Choices:
    """The filters of a gallery, tasks in the order given. Tasks and outcomes that no card is of are left out."""
    shown = Counter(c.task for c in cards)
    have = Counter(sample[0]["task"] for sample in samples(rows))
    kinds = {kind: sum(kind in c.outcomes for c in cards) for kind in OUTCOMES}
    both = {(c.task, kind) for c in cards for kind in c.outcomes}
    known = {kind: n for kind, n in kinds.items() if n}
    order = {task: (shown[task], have[task]) for task in tasks if shown[task]}
    return Choices(order, known, tuple((task, kind) for task in order for kind in known if (task, kind) not in both))
