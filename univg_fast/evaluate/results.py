"""The result of one benchmark: its figures with everything that they depend on, as a file and as a table."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

from univg_fast.data.files import DataFile
from univg_fast.files import write_whole

from .benchmarks import BENCHMARKS
from .items import AS_TOLD, Form, Item, Protocol, truth_problem
from .metrics import percent, summarize
from .parsers import parser_of
from .predictions import Prediction, data_report
from .published import published, published_figure
from .score import score

COLUMNS = {"acc@0.3": "@0.3", "acc@0.5": "Acc@0.5", "acc@0.7": "@0.7", "acc@0.9": "@0.9", "miou": "mIoU"}


def result_of(
    benchmark: str,
    protocol: Protocol,
    parser: str,
    items: Sequence[Item],
    predictions: Mapping[str, Prediction],
    about: Mapping[str, Any],
    form: Form = AS_TOLD,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the content of results.json, a row for each item or target). `about`: model, generation, files. `form`: as in
    `score`."""
    rows = score(items, predictions, protocol, parser_of(parser), form)
    known = BENCHMARKS[benchmark]
    result: dict[str, Any] = {"benchmark": benchmark, "protocol": protocol.name, "parser": parser, **about}
    result["iou"] = {"unit": protocol.unit, "epsilon": protocol.epsilon}
    result["bootstrap"] = {"seed": 0, "num_resamples": 1000}
    result["versions"] = versions()
    result["data"] = data_report(items, [truth_problem(i) for i in items], known.counts.get(protocol.name, {}))
    result |= summarize(rows, tasks=tuple(known.tasks))
    result["published"] = published(benchmark, protocol.name)
    return result, rows


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("univg-fast", "torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def digest(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def facts_of(data: Path, files: Sequence[DataFile]) -> dict[str, Any]:
    """What `files` of results.json says of the benchmark's: what they hold, where their images are and how their boxes
    are counted, where somebody says so."""
    told: dict[str, Any] = {"data": str(data), "data_digest": " ".join(digest(Path(file.name)) for file in files)}
    roots = {str(file.root) for file in files if file.image_root is not None}
    systems = {file.coordinates for file in files if file.coordinates}
    named = {"image_root": ", ".join(sorted(roots)), "coordinates": ", ".join(sorted(systems))}
    return told | {name: value for name, value in named.items() if value}


def write_result(folder: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """FOLDER/rows.jsonl and, when that is whole, FOLDER/results.json."""
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_whole(folder / "rows.jsonl", lines)
    write_whole(folder / "results.json", json.dumps(result, allow_nan=False, indent=1) + "\n")


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """What is odd about data, predictions and answers, and what the model was not shown, each in a line."""
    out = []
    for name in ("data", "predictions"):
        report = result.get(name, {})
        odd = {k: v for k, v in report.items() if isinstance(v, int) and v and k not in ("entries", "lines")}
        if odd:
            out.append(f"{name}: " + ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in odd.items()))
        for task, count in report.get("other_number_than_published", {}).items():
            out.append(f"{name}: {task} has {count} entries of the published set")
    if in_file := result.get("entries_in_file"):
        out.append(f"data: scored {result['data']['entries']} of {in_file} entries (evaluate.max_samples)")
    if outside := result.get("outside_the_mean"):
        out.append(f"data: {outside} entries are of no task of the benchmark: not in the mean of tasks")
    if shown := result.get("oracle_image"):
        unknown = f", {shown['unknown']} with all, as nobody says which holds the target" if shown["unknown"] else ""
        out.append(f"oracle image: {shown['reduced']} entries shown without their other images{unknown}")
    odd = {k: v for k, v in result["counts"].items() if v}
    if odd:
        told = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in odd.items())
        out.append(f"answers: {told} (all of them stay in the denominator)")
    return out


def table_of(result: Mapping[str, Any]) -> Table:
    """A line per task, their mean, all samples, and below them the published averages."""
    told = f"{result['protocol']}, parser {result['parser']}{', oracle image' if result.get('oracle_image') else ''}"
    heading = f"{result['benchmark']} ({told}), %"
    table = Table(title=heading, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("task", no_wrap=True)
    for label in ("n", *COLUMNS.values(), "95% of Acc@0.5"):
        table.add_column(label, justify="right", no_wrap=True)
    for number, (label, figures) in enumerate(figure_lines(result)):
        table.add_row(*_cells(label, figures), style="" if number < len(result["tasks"]) else "bold")
    for row in result["published"]:
        figure = published_figure(row, result["benchmark"])
        table.add_row(f"published: {row['model']}", "", "", f"{figure:.2f}", style="dim")
    return table


def figure_lines(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(label, figures) of a table's lines: the tasks in their published order and by their published names, their
    mean where there are several, all samples."""
    out = [(label, result["tasks"][task]) for task, label in task_names(result).items()]
    if len(out) > 1:
        out.append((f"mean of {tasks_of(result)}", result["macro"]))
    return [*out, ("all samples", result)]


def tasks_of(result: Mapping[str, Any]) -> str:
    """How many tasks the mean is over, and of how many where some are not in the file."""
    have, known = result["macro"].get("tasks", 0), len(BENCHMARKS[result["benchmark"]].tasks)
    return f"{have} of {known} tasks" if have < known else f"{have} tasks"


def task_names(result: Mapping[str, Any]) -> dict[str, str]:
    """Task -> its published name, or its own; in the published order."""
    names: dict[str, str] = BENCHMARKS[result["benchmark"]].tasks
    tasks: Mapping[str, Any] = result["tasks"]
    order = [task for task in names if task in tasks] + [task for task in tasks if task not in names]
    return {task: names.get(task, task) for task in order}


def _cells(label: str, figures: Mapping[str, Any]) -> list[str]:
    low, high = figures.get("acc@0.5_ci95", (None, None))
    interval = f"{percent(low)}-{percent(high)}"
    return [label, str(figures.get("n", "")), *(percent(figures.get(column)) for column in COLUMNS), interval]
