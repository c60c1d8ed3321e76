"""The check from configuration to page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from univg_fast.check import page
from univg_fast.check.estimate import Machine, hours, load_of
from univg_fast.check.look import Counts, look, merged
from univg_fast.check.packed import Packing, pack_epoch
from univg_fast.check.page import Use
from univg_fast.config import Config
from univg_fast.data.errors import named
from univg_fast.data.index import Records
from univg_fast.data.samples import Processor
from univg_fast.data.scan import Report, require
from univg_fast.structs import Record
from univg_fast.train.console import Display
from univg_fast.train.making import batch_size
from univg_fast.train.memory import memory
from univg_fast.train.rows import patch_cost
from univg_fast.train.setup import files_to_read, make_run_processor, scan_use, tell
from univg_fast.train.shapes import shape_of

QUIET = 10.0  # seconds between two lines where there is no terminal


def run(config: Config, out: Path, machine: Machine, threads: int, response_tokens: int | None = None) -> list[str]:
    """Check the data of a configuration, write both reports to `out`; returns why training may not start.

    ValueError where there is nothing to read at all.
    """
    files = files_to_read(config, Path(config.run.dir))
    found = {use: _scanned(config, use, entries) for use, entries in files.items() if entries}
    records = {use: found[use][0] if use in found else [] for use in files}
    processor = make_run_processor(config, records) if any(records.values()) else None
    shape = shape_of(config.model, processor.tokenizer.get_vocab()) if processor else None
    uses: list[Use] = []
    told = response_tokens
    for use, (those, report) in found.items():
        counts, packing = None, None
        if processor is not None and those:
            counts = _looked(use, those, processor, threads)
            report = merged(report, counts)
            if use == "sft" and told is None:
                told = _mean(counts)
            packing = _packed(config, use, those, counts, machine.gpus, told) if use in config.stages else None
        over = () if packing is None else tuple(_over(those[at], tokens) for at, tokens in packing.over)
        problem = _problem(report, config.data.max_bad_fraction)
        made = Use(use, report, problem, counts, packing, over_budget=over)
        if counts is not None:
            shown = page.examples(those, report, config.data.prompt_template)
            made = replace(made, examples=shown)
        if packing is not None and shape is not None and packing.groups:
            epoch = those.mix.epoch
            made = replace(
                made,
                memory=tuple(memory(use, config, shape, load_of(packing), machine.gpus)),
                hours=tuple(hours(use, config, shape, packing, epoch, machine)),
            )
        tell(use, report)
        uses.append(made)
    written = page.write(out, config.run.dir, uses, machine, shape, config.data.max_bad_fraction)
    for made in uses:
        if made.packing is not None and made.memory:
            print(f"data.{made.name}: {said(made, machine)}", flush=True)
            for record in made.over_budget:
                print(f"  longer than pack.budget_tokens={config.pack.budget_tokens}: {record}", flush=True)
    print(f"report: {written}", flush=True)
    return [use.problem for use in uses if use.problem]


def said(use: Use, machine: Machine) -> str:
    """What packing saves and what the estimates say, on one line."""
    assert use.packing is not None
    return (
        f"packing saves {use.packing.saved:.1%} of the tokens of padded batches, rows are {use.packing.fill:.0%} full; "
        f"estimates: {use.memory[-1].value:.3g} of {machine.gpu_gib:g} GiB a GPU, {page.duration(use.hours[-1].value)}"
    )


def _scanned(config: Config, use: str, entries: list[object]) -> tuple[Records, Report]:
    with Display(f"read {use}, %", 100, quiet_s=QUIET) as display:
        found = scan_use(config, use, entries, lambda name, done, size: display.update(99 * done // max(1, size), name))
        display.update(100)
    return found


def _looked(use: str, records: Records, processor: Processor, threads: int) -> Counts:
    with Display(f"check {use}", len(records), quiet_s=QUIET) as display:

        def progress(done: int, counts: Counts) -> None:
            display.update(done, f"images {counts.decoded} | bad {len(counts.bad)}")

        return look(records, processor, use == "sft", threads, progress)


def _packed(
    config: Config, use: str, records: Records, counts: Counts, gpus: int, response_tokens: int | None
) -> Packing:
    grpo = use == "grpo"
    return pack_epoch(
        counts,
        records.mix,
        batch=batch_size(use, config),
        seed=config.run.seed,
        ranks=min(gpus, batch_size(use, config)),
        budget=config.pack.budget_tokens,
        window=config.pack.window,
        generations=config.grpo.num_generations if grpo else 1,
        response_tokens=(response_tokens or config.grpo.max_completion_length) if grpo else None,
        patch=patch_cost(config.model),
    )


def _over(record: Record, tokens: int) -> str:
    return f"{named(record.source, record.uid)}: a row of {tokens} tokens"


def _mean(counts: Counts) -> int | None:
    """Tokens of the mean response, where there are any."""
    number = sum(1 for length in counts.response if length)
    return round(sum(counts.response) / number) if number else None


def _problem(report: Report, bound: float) -> str | None:
    try:
        require(report, bound)
    except ValueError as error:
        return str(error)
    return None
