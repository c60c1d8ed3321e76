"""Read a run folder. Any file may be missing or cut short: `notes` says so, nothing is guessed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from univg_fast.evaluate.metrics import paired_difference, summarize

EVALS = ("before", "sft", "grpo")  # in the order of training; other names follow alphabetically


@dataclass(frozen=True)
class Run:
    """What a run folder holds. Texts are None and mappings empty where the file is not there."""

    path: Path
    metrics: dict[str, list[dict[str, Any]]]  # stage -> rows by step; of a step logged twice, the later row
    evals: dict[str, dict[str, Any]]  # name -> summary
    answers: dict[str, list[dict[str, Any]]]  # name -> rows of eval/NAME.jsonl
    events: list[dict[str, Any]]  # of events.jsonl: what interrupted the run
    rollouts: tuple[Path, ...]  # by stage and step; read when needed, they are large
    config: str | None
    env: dict[str, Any]
    data_report: dict[str, Any]
    notes: tuple[str, ...]


def load_run(path: str | Path) -> Run:
    """Read the folder `path`. ValueError if it is not a folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"report: {folder} is not a folder; expected the run.dir of a training run")
    notes: list[str] = []
    rows = read_jsonl(folder / "metrics.jsonl", notes)
    answers = {p.stem: read_jsonl(p, notes) for p in sorted((folder / "eval").glob("*.jsonl"))}
    evals = {p.stem: read_json(p, notes) for p in sorted((folder / "eval").glob("*.json"))}
    for name, given in answers.items():
        if given and not evals.get(name):
            evals[name] = summarize(given)
            notes.append(f"eval/{name}.json is not there: its figures were computed from eval/{name}.jsonl")
    for name, summary in evals.items():
        if "acc@0.5_ci95" not in summary and answers.get(name):
            evals[name] = {**summary, "acc@0.5_ci95": summarize(answers[name])["acc@0.5_ci95"]}
    stages = list(dict.fromkeys(row["stage"] for row in rows if "stage" in row))
    expected = ("before", *stages) if stages else EVALS
    notes += [f"eval/{name}.json is not there" for name in expected if not evals.get(name)]
    config = folder / "config.yaml"
    if not config.exists():
        notes.append("config.yaml is not there")
    rollouts = tuple(sorted((folder / "rollouts").glob("*.jsonl")))
    if not rollouts and stages != ["sft"]:
        notes.append("rollouts/ holds no completions")
    return Run(
        path=folder,
        metrics={stage: _by_step(rows, stage) for stage in stages},
        evals={name: evals[name] for name in sorted(evals, key=place) if evals[name]},
        answers={name: answers[name] for name in sorted(answers, key=place) if answers[name]},
        events=read_jsonl(folder / "events.jsonl", []),
        rollouts=rollouts,
        config=config.read_text(encoding="utf-8") if config.exists() else None,
        env=read_json(folder / "env.json", notes),
        data_report=read_json(folder / "data_report.json", notes),
        notes=tuple(notes),
    )


def gain(run: Run) -> dict[str, Any] | None:
    """Acc@0.5 after GRPO minus after SFT on the same samples, with a paired interval; None without both."""
    if not (run.answers.get("sft") and run.answers.get("grpo")):
        return None
    if not {r["uid"] for r in run.answers["sft"]} & {r["uid"] for r in run.answers["grpo"]}:
        return None
    return paired_difference(run.answers["grpo"], run.answers["sft"])


def read_jsonl(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a line that is not one (a killed run's last, say) is skipped and noted."""
    if not path.exists():
        notes.append(f"{path.name} is not there")
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        row = _parse(line)
        if isinstance(row, dict):
            rows.append(row)
        else:
            notes.append(f"{path.name}:{number} is not a JSON object and was skipped")
    return rows


def read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """The object of a JSON file; {} and a note if there is none."""
    if not path.exists():
        notes.append(f"{path.name} is not there")
        return {}
    value = _parse(path.read_text(encoding="utf-8", errors="replace"))
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} is not a JSON object and was left out")
    return {}


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _by_step(rows: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    steps = {row["step"]: row for row in rows if row.get("stage") == stage and "step" in row}
    return [steps[step] for step in sorted(steps)]


def place(name: str) -> tuple[int, str]:
    """The order of evaluations."""
    return (EVALS.index(name) if name in EVALS else len(EVALS), name)
