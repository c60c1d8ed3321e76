"""Parts of a benchmark by what is seen: how many images there are, how large the box is, which image holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .overlap import area, box_fault

Row = Mapping[str, Any]
SIZES = (("small", 0.01), ("medium", 0.1), ("large", float("inf")))  # share of its image that a box covers, below


def slices(rows: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
    """Slice -> value -> rows [n] bool, for each slice that the rows tell apart."""
    told: dict[str, list[Any]] = {
        "num_images": [len(row["images"]) if row.get("images") else None for row in rows],
        "box_size": [_size(row.get("gt")) for row in rows],
        "target_image": [_number(row.get("target_image")) for row in rows],
    }
    out = {}
    for name, values in told.items():
        if len({value for value in values if value is not None}) > 1:
            each = np.array(["unknown" if value is None else str(value) for value in values])
            out[name] = {str(value): each == value for value in sorted(set(each), key=_order)}
    return out


def images_named(rows: Sequence[Row], scores: np.ndarray) -> dict[str, Any]:
    """How often answers name the image, over the samples of one target in several images, where its image is known.

    `n` · `named`: share that names any · `acc`: share that names the right one · `acc@0.5`: share with IoU >= 0.5 and
    the right image · `oracle_image_acc@0.5`: share with IoU >= 0.5, had the image been given. {} where there is none.
    """
    known = [
        i for i, row in enumerate(rows)
        if {"image", "sample"} & row.keys() == {"image"}
        and row.get("target_image") is not None and len(row.get("images") or ()) > 1
    ]  # fmt: skip
    if not known:
        return {}
    right = np.array([rows[i]["image"] == rows[i]["target_image"] for i in known])
    named, good = np.array([rows[i]["image"] is not None for i in known]), scores[known] >= 0.5
    shares = {"named": named, "acc": right, "acc@0.5": good & right, "oracle_image_acc@0.5": good}
    return {"n": len(known)} | {name: int(hits.sum()) / len(known) for name, hits in shares.items()}


def sets(rows: Sequence[Row], scores: np.ndarray) -> dict[str, Any]:
    """Of answers with several boxes at once (rows per target, see score.py): {} where no sample has several targets.

    `samples` · `targets` · `boxes` that were answered · `precision@0.5`, `recall@0.5`, `f1@0.5` of them all ·
    `count_acc`: share of samples with the right number of boxes · `all_right@0.5`: and all of them at IoU >= 0.5.
    """
    if not any("sample" in row for row in rows):
        return {}
    hits, wanted, given = Counter[str](), Counter[str](), {}
    for row, hit in zip(rows, (scores >= 0.5).tolist(), strict=True):
        sample = row.get("sample", row["uid"])
        hits[sample] += hit
        wanted[sample] += 1
        given[sample] = int(row.get("boxes", 0))
    right, targets, boxes = sum(hits.values()), len(rows), sum(given.values())
    exact = [sample for sample in wanted if given[sample] == wanted[sample]]
    return {
        "samples": len(wanted),
        "targets": targets,
        "boxes": boxes,
        "precision@0.5": right / boxes if boxes else 0.0,
        "recall@0.5": right / targets,
        "f1@0.5": 2 * right / (boxes + targets),
        "count_acc": len(exact) / len(wanted),
        "all_right@0.5": sum(hits[sample] == wanted[sample] for sample in exact) / len(wanted),
    }


def _size(box: Any) -> str | None:
    if box_fault(box):
        return None
    return next(name for name, below in SIZES if area(box) / 1e6 < below)


def _number(image: int | None) -> int | None:
    return None if image is None else image + 1


def _order(value: str) -> tuple[int, str]:
    names = [name for name, _ in SIZES]
    return (int(value) if value.isdigit() else names.index(value) if value in names else 99, value)
