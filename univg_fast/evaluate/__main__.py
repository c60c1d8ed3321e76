"""`python -m univg_fast.evaluate --benchmark NAME --data FILE (--predictions FILE | --model PATH) --out DIR`.

Scores answers by a benchmark's protocol. docs/evaluation.md says how each benchmark's file is read and scored, what a
file of predictions looks like, and what is in DIR/results.json and DIR/rows.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = (
    "mig_bench, lisa_val, lisa_test, llmseg, reasonvos, revos, refcoco, refcoco+, refcocog, multi_target, records"
)
PARSERS = ("answer_tag", "univg_r1", "migician", "univg_r1_zero_shot", "lmms_eval")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m univg_fast.evaluate", description=__doc__, allow_abbrev=False)
    add = top.add_argument
    add("--benchmark", required=True, help=BENCHMARKS)
    add("--data", required=True, type=Path, help="the benchmark's file (JSON or JSONL; of records also parquet)")
    add("--image-root", type=Path, help="relative image paths start here (default: at the data file's folder)")
    add("--protocol", help="of mig_bench: original or revised (default: what its numbers are of)")
    add("--parser", default="answer_tag", choices=PARSERS, help="how a box is read from an answer (default answer_tag)")
    add("--predictions", type=Path, help="answers to score (JSONL)")
    add("--model", help="or: the folder of a model that answers first; --section.key=value as in training")
    add("--config", help="what the model is asked with, records are read by (default: the config.yaml of its run)")
    add("--oracle-image", action="store_true", help="show the model only the images that hold a target")
    add("--direct", action="store_true", help="ask for no reasoning; of --predictions: none was asked for")
    add("--out", required=True, type=Path, help="folder of results.json, rows.jsonl and the model's answers")
    return top


def main(argv: list[str] | None = None) -> int:
    """0: scored. 1: a mistake in the input. 2: one in the configuration."""
    given, keys = parser().parse_known_args(argv)
    try:
        if bool(given.predictions) == bool(given.model):
            raise ValueError("expected either --predictions or --model")
        if given.model:
            return ask_model(given, keys)
        from univg_fast.evaluate.benchmarks import benchmark_of
        from univg_fast.evaluate.readers import records

        trainers = benchmark_of(given.benchmark).read is records  # its section data says how they are read
        alone = [key for key in keys if not (trainers and key.startswith("--data."))]
        alone += ["--config"] if given.config and not trainers else []
        alone += ["--oracle-image"] if given.oracle_image else []
        if alone:
            raise ValueError(f"expected --model with {' '.join(alone)}")
        score_file(given, keys)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def score_file(given: argparse.Namespace, keys: list[str]) -> None:
    from univg_fast.config import load_config
    from univg_fast.evaluate.benchmarks import read_items, source_files
    from univg_fast.evaluate.items import without_reasoning
    from univg_fast.evaluate.predictions import read_predictions
    from univg_fast.evaluate.results import digest, facts_of, result_of, write_result

    data = load_config([*(["--config", given.config] if given.config else []), *keys]).data
    items, protocol = read_items(given.benchmark, given.data, given.image_root, given.protocol, data)
    items = without_reasoning(items) if given.direct else items
    predictions, report = read_predictions(given.predictions, items)
    files = facts_of(given.data, source_files(given.benchmark, given.data, given.image_root, data))
    files |= {"predictions": str(given.predictions), "predictions_digest": digest(given.predictions)}
    about: dict[str, Any] = {"model": None, "generation": None, "files": files, "predictions": report}
    if given.direct:
        about["direct"] = True
    result, rows = result_of(given.benchmark, protocol, given.parser, items, predictions, about)
    write_result(given.out, result, rows)
    tell(result, given.out)


def ask_model(given: argparse.Namespace, keys: list[str]) -> int:
    from univg_fast.config import ConfigError

    try:
        from univg_fast.evaluate.load import run_config

        config, source = run_config(given.model, given.config, keys)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from univg_fast import distributed

    distributed.run(lambda: answer_and_score(given, config, source))
    return 0


def answer_and_score(given: argparse.Namespace, config: Any, source: str) -> None:
    """Collective."""
    from univg_fast import distributed
    from univg_fast.evaluate.ask import ask, form_of
    from univg_fast.evaluate.benchmarks import read_items, source_files
    from univg_fast.evaluate.items import without_reasoning
    from univg_fast.evaluate.oracle import with_oracle_image
    from univg_fast.evaluate.results import facts_of, result_of, write_result

    device = distributed.init(timeout_s=7 * 86400)  # ranks wait for the slowest one at the end
    items, protocol = read_items(given.benchmark, given.data, given.image_root, given.protocol, config.data)
    files = facts_of(given.data, source_files(given.benchmark, given.data, given.image_root, config.data))
    entries, items = len(items), items[: config.evaluate.max_samples]
    if distributed.is_main():
        print(f"{len(items)} entries; the model is asked as {source} says", flush=True)
    oracle = None
    if given.oracle_image:
        items, oracle = with_oracle_image(items)
    items = without_reasoning(items) if given.direct else items
    shown = {name: True for name in ("oracle_image", "direct") if getattr(given, name)}
    data = {"data": files["data_digest"], "image_root": files.get("image_root")}
    answers, generation = ask(given.model, config, items, data, given.out, device, shown)
    if distributed.is_main():
        report = {"errors": sum(said.error is not None for said in answers.values())}
        report["empty"] = sum(said.empty for said in answers.values())
        about = {"model": given.model, "generation": generation, "max_samples": config.evaluate.max_samples,
                 "files": files, "predictions": report}  # fmt: skip
        result, rows = result_of(given.benchmark, protocol, given.parser, items, answers, about, form_of(config))
        if oracle:
            result |= {"oracle_image": oracle, "published": []}  # the published models saw all images
        if len(items) < entries:
            result |= {"entries_in_file": entries, "published": []}  # nor were they asked about a part only
        write_result(given.out, result, rows)
        tell(result, given.out)
    distributed.barrier()


def tell(result: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    from univg_fast.evaluate.results import lines_of, table_of

    Console(width=None if sys.stdout.isatty() else 100, soft_wrap=True).print(table_of(result))
    print(*lines_of(result), f"{out / 'results.json'}", sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
