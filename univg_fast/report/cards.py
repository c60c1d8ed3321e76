"""Example cards: what the page shows of one held-out sample, and of one prompt with its G completions."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from univg_fast.report.overlays import Album, Mark, Picture, truth
from univg_fast.report.run import Run, read_jsonl

EVAL_CARDS, ROLLOUT_CARDS = 10, 8
MAX_TEXT = 1500  # characters of a completion that a card shows
T = TypeVar("T")
TAGS = re.compile(r"(</?(?:think|answer)>)")


@dataclass(frozen=True)
class View:
    """One image of a prompt as a card shows it."""

    picture: Picture
    title: str
    target: bool
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Answer:
    """What one model said about a sample."""

    name: str
    iou: float
    note: str  # why there is no box to see; "" if there is one
    parts: tuple[str, ...]
    views: tuple[View, ...]


@dataclass(frozen=True)
class EvalCard:
    uid: str
    task: str
    question: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class RolloutCard:
    uid: str
    stage: str
    step: int
    task: str
    question: str
    size: int  # G
    miou: float
    weight: float
    mean: float  # of the group's rewards
    std: float
    dropped: bool
    views: tuple[View, ...]
    reward_names: tuple[str, ...]
    completions: tuple[dict[str, Any], ...]  # of rollouts/*.jsonl, merged by `_merge`


def eval_cards(run: Run, album: Album) -> list[EvalCard]:
    """Samples that every evaluation answered, drawn at random (seed 0), the tasks in turn."""
    tables = {name: {row["uid"]: row for row in rows} for name, rows in run.answers.items()}
    if not tables:
        return []
    first, *others = tables.values()
    shared = [row for uid, row in first.items() if all(uid in other for other in others)]
    cards = []
    for row in _in_turn(shared)[:EVAL_CARDS]:
        if album.full:
            break
        answers = tuple(_answer(name, table[row["uid"]], album) for name, table in tables.items())
        cards.append(EvalCard(row["uid"], row["task"], row["question"], answers))
    return cards


def rollout_cards(run: Run, album: Album) -> list[RolloutCard]:
    """From steps spread evenly over the run, the group whose rewards differ most: it teaches most."""
    cards: list[RolloutCard] = []
    for path in spread(run.rollouts, ROLLOUT_CARDS):
        groups = [row for row in read_jsonl(path, []) if row.get("completions")]
        if not groups or album.full:
            continue
        fresh = [g for g in groups if g["uid"] not in {card.uid for card in cards}] or groups
        stage = path.stem.rsplit("_", 1)[0]
        cards.append(rollout_card(stage, max(fresh, key=spread_of_rewards), album))
    return cards


def split_text(text: str) -> tuple[str, ...]:
    """A completion cut at its <think> and <answer> tags, which the page prints pale; long ones end in "…"."""
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT} more characters)"
    return tuple(part for part in TAGS.split(text) if part)


def _answer(name: str, row: dict[str, Any], album: Album) -> Answer:
    target, box = row.get("target_image"), row.get("box")
    marks = [Mark(target, box, label=f"prediction {name}, IoU {row['iou']:.2f}")] if box and target is not None else []
    note = row.get("error") or ("" if box else "no box could be read from the answer")
    if box and target is None:
        note = "the data does not say which image holds the answer, so no box is drawn"
    return Answer(name, row["iou"], note, split_text(row["text"]), _views(row, marks, album))


def rollout_card(stage: str, group: dict[str, Any], album: Album) -> RolloutCard:
    """The card of a line of rollouts/."""
    lines = _merge(group["completions"])
    target = group.get("target_image")
    boxes = {tuple(line["box"]): line for line in reversed(lines) if line["box"]}  # a box once, at its best reward
    marks = [
        Mark(target, box, opacity=line["opacity"], label=f"prediction, reward {line['reward']:.2f}")
        for box, line in sorted(boxes.items(), key=lambda item: item[1]["reward"])  # the best on top
        if target is not None
    ]
    return RolloutCard(
        uid=group["uid"],
        stage=stage,
        step=group["step"],
        task=group["task"],
        question=group["question"],
        size=len(group["completions"]),
        miou=group["miou"],
        weight=group["group"]["weight"],
        mean=group["group"]["mean"],
        std=group["group"]["std"],
        dropped=group["group"]["dropped"],
        views=_views(group, marks, album),
        reward_names=tuple(dict.fromkeys(name for line in lines for name in line["rewards"])),
        completions=tuple(lines),
    )


def _merge(completions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Completions with the best reward first; equal texts become one line with their number in "times"."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    rewards = [c["reward"] for c in completions]
    worst, width = min(rewards), max(rewards) - min(rewards)
    for c in sorted(completions, key=lambda c: -c["reward"]):
        key = (c["text"], c["finish"])
        opacity = round(0.3 + 0.7 * (c["reward"] - worst) / width, 2) if width > 0 else 0.8
        fresh = {**c, "times": 0, "opacity": opacity, "parts": split_text(c["text"])}
        lines.setdefault(key, fresh)["times"] += 1
    return list(lines.values())


def _views(row: dict[str, Any], marks: Sequence[Mark], album: Album) -> tuple[View, ...]:
    return views(row["images"], [row], marks, album)


def views(
    images: Sequence[str], targets: Sequence[dict[str, Any]], marks: Sequence[Mark], album: Album
) -> tuple[View, ...]:
    """The images of a prompt with the truths of `targets` (rows with target_image and gt) and `marks`."""
    known = [row for row in targets if row.get("target_image") is not None]
    truths = [truth(row["target_image"], row["gt"]) for row in known if row.get("gt")]
    marks = [*truths, *marks]  # truths below the predictions, and wider: both show where they agree
    holding = {row["target_image"] for row in known}
    return tuple(
        View(album.add(path), f"image {i + 1}", i in holding, tuple(m for m in marks if m.image == i))
        for i, path in enumerate(images)
    )


def _in_turn(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in random order (seed 0), one of each task after the other."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in random.Random(0).sample(list(rows), len(rows)):
        by_task.setdefault(row["task"], []).append(row)
    return in_turn([by_task[task] for task in sorted(by_task)])


def in_turn(queues: Sequence[Sequence[T]]) -> list[T]:
    """The first of each queue, then the second of each, and so on."""
    return [q[i] for i in range(max(map(len, queues), default=0)) for q in queues if i < len(q)]


def spread(items: Sequence[T], number: int) -> list[T]:
    """At most `number` (> 1) of the items, evenly spaced, the first and the last among them."""
    if len(items) <= number:
        return list(items)
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]


def spread_of_rewards(group: dict[str, Any]) -> float:
    """How much there is to learn from the differences within a group."""
    rewards = [c["reward"] for c in group["completions"]]
    mean = sum(rewards) / len(rewards)
    return sum((r - mean) ** 2 for r in rewards)
