"""`python -m univg_fast.cot build (--data FILE… | --config NAME|FILE [--section.key=value …]) --out stage1.jsonl`.

Makes a stage-1 file of reasoning traces from records with boxes: out of templates, or asked of a teacher
(--teacher URL). The same command goes on after an interruption. docs/cot.md says what is made, filtered and kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from univg_fast.config import Config, ConfigError, load_config
from univg_fast.data.entries import STYLES

if TYPE_CHECKING:
    from univg_fast.cot.journal import Journal


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m univg_fast.cot", description=__doc__, allow_abbrev=False)
    add = top.add_subparsers(dest="command", required=True).add_parser("build", allow_abbrev=False).add_argument
    add("--out", required=True, type=Path, help="the stage-1 file to write (JSONL)")
    add("--data", nargs="+", default=[], help="files with boxes, in any format that training reads")
    add("--config", help="or: a recipe's name or file, whose data.* keys say what is read and how")
    add("--use", default="grpo", choices=("sft", "grpo", "eval"), help="which of the config's files (default grpo)")
    add("--image-root", help="relative image paths start here (default: at the data file's folder)")
    add("--answer-style", choices=STYLES, help="form of the boxes in the answers (default: the files')")
    add("--levels", default="object,image", help="what templates say: object, image or object,image (default)")
    add("--candidates", type=int, default=3, help="traces made for each record; the best one is kept (default 3)")
    add("--seed", type=int, default=0, help="of the choice of templates, and told to the teacher (default 0)")
    add("--teacher", metavar="URL", help="base of an OpenAI-compatible endpoint, as http://localhost:8000/v1")
    add("--model", help="the teacher's name there")
    add("--api-key-env", default="OPENAI_API_KEY", help="environment variable that holds its key, if it needs one")
    add("--hint", action="store_true", help="show the teacher the right answer; then no IoU gain can be asked for")
    add("--temperature", type=float, default=1.0)
    add("--max-tokens", type=int, default=1024, help="of one answer (default 1024)")
    add("--timeout", type=float, default=120.0, help="seconds for one answer (default 120)")
    add("--attempts", type=int, default=5, help="for one answer, with growing pauses (default 5)")
    add("--threads", type=int, help="records at a time (default: 8 with a teacher, else 1)")
    add("--right", type=float, default=0.5, help="IoU from which an answer is right (default 0.5)")
    add("--gain-right", type=float, default=0.10, help="IoU gain over a right direct answer (default 0.10: 10 %%)")
    add("--gain-wrong", type=float, default=0.20, help="IoU gain over a wrong one, if it stays wrong (default 0.20)")
    return top


def main(argv: list[str] | None = None) -> int:
    """0: the file is complete. 1: records failed, none was kept, or a mistake in the input. 2: one in the
    configuration."""
    given, keys = parser().parse_known_args(argv)
    try:
        if bool(given.data) == bool(given.config):
            raise ConfigError("expected either --data or --config")
        config = load_config([*(["--config", given.config] if given.config else []), *keys])
        check(given)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        return run(given, config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr, flush=True)
        os._exit(130)  # not by the front door: it waits for every request that is under way


def check(given: argparse.Namespace) -> None:
    """ConfigError for options that make no sense."""
    levels = given.levels.split(",")
    problem = None
    if not set(levels) <= {"object", "image"} or len(set(levels)) != len(levels):
        problem = f"--levels: expected object, image or object,image, got {given.levels!r}"
    for name in ("candidates", "attempts", "threads", "max_tokens", "timeout"):
        if getattr(given, name) is not None and not getattr(given, name) > 0:
            problem = f"--{name.replace('_', '-')}: expected a number above 0, got {getattr(given, name)}"
    if given.teacher and not given.model:
        problem = "--teacher: expected --model, the name that the endpoint knows the teacher by"
    if given.teacher and not given.teacher.startswith(("http://", "https://")):
        problem = f"--teacher: expected an address that begins with http:// or https://, got {given.teacher!r}"
    if not given.teacher and (given.model or given.hint):
        problem = "--model and --hint: expected --teacher with them"
    if problem:
        raise ConfigError(problem)


def run(given: argparse.Namespace, config: Config) -> int:
    """Read, judge, write, and say what became of the records."""
    from univg_fast.cot.build import build, counts, from_templates
    from univg_fast.cot.filters import Thresholds
    from univg_fast.cot.journal import Journal
    from univg_fast.cot.teacher import Teacher
    from univg_fast.data.files import data_files
    from univg_fast.data.scan import scan
    from univg_fast.rewards import ask_for_images
    from univg_fast.train.console import Display

    data = config.data
    entries = list(given.data) or configured(config, given.use)
    if not entries:
        raise ValueError(f"data.{given.use}: expected at least one file, got none")
    root = given.image_root or data.image_root
    reading: dict[str, Any] = {"exif": data.exif, "min_pixels": data.min_pixels, "max_pixels": data.max_pixels}
    reading["name_images"] = ask_for_images(config.rewards.terms)
    style = given.answer_style or data.answer_style
    records, report = scan(entries, root, "box", cache_dir=data.cache_dir, answer_style=style, **reading)
    print(f"{report.summary()}", *report.details(), sep="\n", flush=True)
    if not records:
        raise ValueError("data: there is no record with a box in these files")
    thresholds = Thresholds(given.right, given.gain_right, given.gain_wrong)
    if given.teacher:
        key = os.environ.get(given.api_key_env) or None
        limits = {"max_tokens": given.max_tokens, "timeout": given.timeout, "attempts": given.attempts}
        teacher = Teacher(given.teacher, given.model, key, given.temperature, seed=given.seed, hint=given.hint,
                          exif=data.exif, **limits)  # fmt: skip
        make, threads = (lambda record: teacher.candidates(record, given.candidates)), given.threads or 8
    else:
        make, threads = from_templates(given.levels.split(","), given.candidates, given.seed), given.threads or 1
    files = data_files(entries, root, data.cache_dir)
    journal = Journal(given.out, settings(given, root, style, reading, [file.path for file in files]), len(records))
    if journal.finished():
        print(f"{given.out} is there already, made from the same files with the same settings")
        return ended(journal, [])
    journal.open()
    if journal.done:
        print(f"going on after {journal.done} records ({journal.path})", flush=True)
    with Display("cot", len(records), journal.done, quiet_s=10.0) as display:
        failures = build(records, make, journal, thresholds, threads, display.update)
    print(f"{given.out}: {counts(journal, len(failures))}", flush=True)
    return ended(journal, failures)


def ended(journal: Journal, failures: list[str]) -> int:
    """The exit code: a file that is incomplete, or has nothing in it, is told."""
    for failure in failures[:20]:
        print(f"failed {failure}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} records failed; the same command tries them again", file=sys.stderr)
    if not journal.kept:
        print(f"error: {journal.out} is empty: no record was kept (docs/cot.md, Filters)", file=sys.stderr)
    return 1 if failures or not journal.kept else 0


def configured(config: Config, use: str) -> list[Any]:
    """The config's files of a use; those of the built-in data set are written first."""
    if config.data.builtin is None:
        return list(getattr(config.data, use))
    from univg_fast.train.setup import data_files

    return data_files(config, Path(config.run.dir))[use]


def settings(
    given: argparse.Namespace, root: str | None, style: str | None, reading: dict[str, Any], files: list[Path]
) -> dict[str, Any]:
    """What the output depends on: a build with other settings is another one."""
    import hashlib

    content = []
    for path in files:
        with path.open("rb") as file:
            content.append(hashlib.file_digest(file, "blake2b").hexdigest()[:32])
    names = ["candidates", "seed", "right", "gain_right", "gain_wrong"]
    names += ["teacher", "model", "hint", "temperature", "max_tokens"] if given.teacher else ["levels"]
    told = {name: getattr(given, name) for name in names}
    return {"content": content, "image_root": root, "answer_style": style, **reading, **told}


if __name__ == "__main__":
    sys.exit(main())
