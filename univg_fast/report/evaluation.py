"""report.html of an evaluation: its figures beside the published ones, by task and slice, and a gallery."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from univg_fast.evaluate.published import published_figure
from univg_fast.evaluate.results import figure_lines, lines_of, task_names, tasks_of
from univg_fast.evaluate.slices import SIZES
from univg_fast.report import page
from univg_fast.report.gallery import BUDGET, OUTCOMES, choices, gallery, samples
from univg_fast.report.histograms import histograms
from univg_fast.report.html import KINDS, flatten
from univg_fast.report.overlays import Album
from univg_fast.report.run import read_jsonl

FILE = "results.json"
OTHERS = {"acc@0.3": "Acc@0.3", "acc@0.7": "Acc@0.7", "acc@0.9": "Acc@0.9"}  # behind Acc@0.5
COMPARED = "acc@0.5"  # what the published tables hold
SLICES = {
    "num_images": "Number of images",
    "box_size": "Size of the box",
    "target_image": "Image that holds the target",
}
IMAGES = {
    "named": "answers that name an image",
    "acc": "name the right one",
    "acc@0.5": "have it and the box right (IoU of at least 0.5)",
    "oracle_image_acc@0.5": "have the box right in the image that was meant",
}


@dataclass(frozen=True)
class Evaluation:
    """What `python -m univg_fast.evaluate` left in a folder."""

    path: Path
    result: dict[str, Any]  # results.json
    rows: list[dict[str, Any]]  # rows.jsonl; [] where it is not there
    notes: tuple[str, ...]


def is_evaluation(path: str | Path) -> bool:
    """Whether a folder is one of an evaluation, and not of a training run."""
    return (Path(path) / FILE).is_file()


def load_evaluation(path: str | Path) -> Evaluation:
    """Read a folder; notes say what is amiss with the rows. ValueError for a results.json that is none."""
    folder, notes = Path(path), list[str]()
    try:
        result = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"report: {folder / FILE} is no JSON ({error}); the same evaluation writes it anew") from error
    if not (isinstance(result, dict) and {"benchmark", "tasks", "counts"} <= result.keys()):
        raise ValueError(
            f"report: {folder / FILE} is not the result of an evaluation: expected benchmark, tasks, counts"
        )
    rows = read_jsonl(folder / "rows.jsonl", notes)
    if rows and len(rows) != result["n"]:
        notes.append(
            f"rows.jsonl holds {len(rows)} rows, and {FILE} tells of {result['n']}: they are of two evaluations"
        )
    return Evaluation(folder, result, rows, tuple(notes))


def write_evaluation(folder: str | Path) -> Path:
    """Write FOLDER/report.html beside its results.json, return its path; ValueError as of `load_evaluation`."""
    evaluation = load_evaluation(folder)
    return page.write(evaluation.path / "report.html", render(evaluation))


def render(evaluation: Evaluation) -> str:
    """The page as text. Its figures are those of results.json; histograms and cards are made of the rows."""
    result, rows = evaluation.result, evaluation.rows
    exif = (result.get("generation") or {}).get("exif", "ignore")
    album = Album(evaluation.path, budget=BUDGET, exif=exif)
    shown, names = gallery(rows, album), task_names(result)
    return page.render(
        "evaluation.html.j2",
        name=f"{evaluation.path.resolve().name}: {result['benchmark']}",
        result=result,
        about=about(result),
        notes=evaluation.notes,
        odd=lines_of(result),
        others=OTHERS,
        lines=figure_lines(result),
        published=published_lines(result),
        best=best_published(result),
        slices=slice_lines(result),
        images=IMAGES,
        kinds=KINDS,
        examples=examples(result),
        charts=histograms({"": rows}, names),
        cards=shown,
        total=len(samples(rows)),
        names=names,
        choices=choices(shown, rows, names),
        outcomes=OUTCOMES,
        album=[p for p in album.pictures.values() if p.uri],
        facts=flatten({k: result[k] for k in ("generation", "iou", "bootstrap", "files", "versions") if result.get(k)}),
    )


def about(result: Mapping[str, Any]) -> str:
    """What was scored, and how, in a line."""
    model = f"model {result['model']}" if result.get("model") else "answers from a file"
    part = f" · the first {result['max_samples']} entries only" if result.get("entries_in_file") else ""
    oracle = " · oracle image: only images that hold a target were shown" if result.get("oracle_image") else ""
    return f"{model} · protocol {result['protocol']} · parser {result['parser']}{part}{oracle}"


def published_lines(result: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """(columns, rows from the best to the worst) of the published figures in percent, this evaluation's among them.

    The first figure is the mean of tasks, or that of this set where a paper's average is over several.
    """
    ours = {label: 100 * figures[COMPARED] for label, figures in figure_lines(result)[: len(result["tasks"])]}
    columns = [label for label in ours if any(label in row.get("values", {}) for row in result["published"])]
    if result["benchmark"] in columns:  # one set's own figure stands in front
        columns = []
    rows = [
        {
            "model": row["model"],
            "figure": published_figure(row, result["benchmark"]),
            "values": row.get("values", {}),
            "source": row["source"],
            "remarks": [row[key] for key in ("misprint", "note", "table_note") if key in row],
        }
        for row in result["published"]
    ]
    if rows and result["macro"]:
        mean, over = result["macro"], tasks_of(result)
        rows.append(
            {
                "part": f", the mean of {over}" if " of " in over else "",
                "figure": 100 * mean[COMPARED],
                "ci": mean[f"{COMPARED}_ci95"],
                "values": ours,
                "remarks": [],
            }
        )
    return columns, sorted(rows, key=lambda row: -row["figure"])


def best_published(result: Mapping[str, Any]) -> dict[str, float]:
    """Label of a line -> the highest figure that was published for it, in percent."""
    found: dict[str, float] = {}
    for row in result["published"]:
        for label, figure in row.get("values", {}).items():
            found[label] = max(figure, found.get(label, 0.0))
    return found


def slice_lines(result: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Mapping[str, Any]]]]]:
    """(title, [(value, figures)]) of each slice; sizes with the share of the image below which they lie."""
    sizes = {name: f"{name} (below {100 * most:g} %)" for name, most in SIZES if most <= 1}
    given = result.get("slices", {})
    return [(SLICES.get(k, k), [(sizes.get(v, v), f) for v, f in of.items()]) for k, of in given.items()]


def examples(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(what is odd, the first ids or places of it) of the benchmark's file and of the predictions."""
    return [
        (f"{name}: {kind.replace('_', ' ')}", list(map(str, ids)))
        for name in ("data", "predictions")
        for kind, ids in result.get(name, {}).get("examples", {}).items()
    ]
