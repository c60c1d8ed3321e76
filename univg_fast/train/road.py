"""The whole run: evaluate, train the configured stages, evaluate after each, report."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers

from univg_fast import distributed
from univg_fast.config import Config, to_yaml
from univg_fast.evaluate.metrics import results_table
from univg_fast.evaluate.run import Stopped as EvaluationStopped
from univg_fast.evaluate.run import evaluate
from univg_fast.files import read_json, write_whole
from univg_fast.report import write_report
from univg_fast.train import sinks, stopping
from univg_fast.train.crash import out_of_memory_told
from univg_fast.train.dry_run import dry_run
from univg_fast.train.environment import describe
from univg_fast.train.export_run import export_run
from univg_fast.train.faults import Faults
from univg_fast.train.metrics import console, eval_progress
from univg_fast.train.overfit import overfit
from univg_fast.train.phases import Phases
from univg_fast.train.previous import note, settle, taken
from univg_fast.train.setup import Inputs, load_policy, prepare
from univg_fast.train.stage import run_stage
from univg_fast.train.watchdog import Watchdog


def main(config: Config) -> None:
    """The whole run. Collective."""
    device = distributed.init(2 * config.run.hang_timeout_s + 60)  # the watchdog speaks first: it names the rank
    stopping.install(config.run.resume)
    transformers.utils.logging.disable_progress_bar()  # ours is the only one
    if config.model.export is not None:
        export_run(config)
        return
    torch.manual_seed(config.run.seed)
    if config.run.dry_run:
        dry_run(config, device)
        return
    run_dir, phases = Path(config.run.dir), Phases()
    distributed.all_or_none("log", lambda: sinks.check(config.log) if distributed.is_main() else None)
    with taken(run_dir):
        changes = distributed.all_or_none("run.dir", lambda: settle(config, run_dir) if distributed.is_main() else [])
        if distributed.is_main():
            write_whole(run_dir / "config.yaml", to_yaml(config))
            write_whole(run_dir / "env.json", json.dumps(describe(), indent=1) + "\n")
            print(to_yaml(config), flush=True)
            note(changes, run_dir)
        with Watchdog(phases, config.run.hang_timeout_s, run_dir / "logs"), out_of_memory_told(phases, config):
            travel(config, run_dir, device, phases, Faults(config.fault, phases, run_dir / "crash"))


def travel(config: Config, run_dir: Path, device: torch.device, phases: Phases, faults: Faults) -> None:
    """Data, and the stages one after the other, each evaluated. Collective."""
    with phases("data"):
        inputs = overfit(config, prepare(config, run_dir, lambda *_: phases.beat()))
    model = config.model.path
    held_out("before", model, config, inputs, run_dir, device, phases)
    for stage in config.stages:
        trained = run_stage(stage, config, inputs, model, run_dir, device, phases, faults)
        if trained is None:
            if distributed.is_main():
                print(f"stopped at run.max_steps={config.run.max_steps}; without it, {stopping.goes_on()}")
            break
        model = str(trained)
        held_out(stage, model, config, inputs, run_dir, device, phases)
    faults.tell_if_it_never_came()
    if distributed.is_main():
        finish(config, run_dir)


def held_out(
    name: str, path: str, config: Config, inputs: Inputs, run_dir: Path, device: torch.device, phases: Phases
) -> None:
    """Evaluate the model at `path` on the held-out records, unless that result is there already. Collective."""
    out, records = run_dir / "eval" / name, inputs.records["eval"]
    done = config.run.resume != "never" and summary_at(out.with_suffix(".json")) is not None
    if not records or distributed.broadcast_object(done):
        return
    phases.stage = name
    with phases("load"):
        model = load_policy(config, inputs.processor, path, device, adapters=False).eval()
    # an evaluation that was asked to stop wrote nothing; `finishing` then ends the run
    with stopping.finishing(), suppress(EvaluationStopped), phases("eval"), eval_progress(name) as progress:
        asked = stopping.asker(phases)
        evaluate(model, inputs.processor, records, config.evaluate, config.rollout, out, progress, asked)


def finish(config: Config, run_dir: Path) -> None:
    """The final table and the report."""
    results = [summary_at(run_dir / "eval" / f"{name}.json") for name in ("before", *config.stages)]
    summaries = {summary["name"]: summary for summary in results if summary is not None}
    if summaries:
        console().print(results_table(summaries))
    print(f"report: {write_report(run_dir)}", flush=True)


def summary_at(path: Path) -> dict[str, Any] | None:
    """An evaluation's summary; None if there is none. One that was cut is none, and said to be."""
    summary = read_json(path)
    if not isinstance(summary, dict) and path.is_file():
        distributed.warn(f"{path} is not a whole summary (cut while it was written?): it does not count")
        return None
    return summary
