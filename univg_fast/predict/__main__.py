"""`python -m univg_fast.predict --model M --images a.jpg b.jpg --question "…" [--out boxes.png] [--json]`.

Asks a model where something is: prints its reasoning, the image and the box, in pixels and in thousandths of the image.
`--batch FILE` (JSONL of {"images", "question", "id"}) writes an object a line to --out, or prints them. `--serve` opens
a page on this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from univg_fast.config import Config

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m univg_fast.predict", description=__doc__, allow_abbrev=False)
    add = top.add_argument
    add("--model", required=True, help="the folder of a model; --section.key=value as in training")
    add("--config", help="what it is asked with (default: the config.yaml of the run that it lies in)")
    add("--images", nargs="+", default=[], help="the images, in the order in which the question counts them")
    add("--question", help="what to find")
    add("--direct", action="store_true", help="ask for no reasoning")
    add("--out", type=Path, help="a picture of all images with the boxes; with --batch the file of answers")
    add("--json", action="store_true", help="print one JSON object")
    add("--batch", type=Path, help="many questions: a JSONL file")
    add("--serve", action="store_true", help="a page to ask on, at 127.0.0.1 only (needs gradio)")
    add("--port", type=int, default=7860, help="of the page (default 7860)")
    return top


def main(argv: list[str] | None = None) -> int:
    """0: answered. 1: a mistake in the input, or a question without an answer. 2: one in the configuration."""
    given, keys = parser().parse_known_args(argv)
    from univg_fast.config import ConfigError

    try:
        if [bool(given.batch), bool(given.images and given.question), given.serve].count(True) != 1:
            raise ConfigError("expected --images and --question, or --batch, or --serve")
        from univg_fast.evaluate.load import run_config

        config, _ = run_config(given.model, given.config, keys)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        if given.out and (given.out.is_dir() or not given.out.parent.is_dir()):
            raise ValueError(f"--out: expected a file in a folder that exists, got {given.out}")
        if given.serve:
            from univg_fast.predict.serve import serve

            serve(given.model, config, given.port)
            return 0
        return many(given, config) if given.batch else one(given, config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def one(given: argparse.Namespace, config: Config) -> int:
    if given.out and given.out.suffix.lower() not in PICTURES:
        raise ValueError(f"--out: expected a picture ({', '.join(PICTURES)}), got {given.out}")
    from univg_fast.predict.questions import asker, item_of, sheet, told

    item = item_of("question", "--images", [str(path) for path in given.images], given.question, not given.direct)
    (found,) = asker(given.model, config)([item])
    if found["error"]:
        raise ValueError(found["error"])
    print(json.dumps(found, ensure_ascii=False) if given.json else told(found), flush=True)
    if given.out:
        sheet(found, config.data.exif).save(given.out)
        print(given.out, file=sys.stderr)
    return 0


def many(given: argparse.Namespace, config: Config) -> int:
    """A line that is no question has a line of its own in the output, which says so."""
    from univg_fast.predict.questions import asker, questions

    items = list(questions(given.batch, not given.direct))
    failed = 0
    out = given.out.open("w", encoding="utf-8") if given.out else sys.stdout
    try:
        for found in asker(given.model, config)(items):
            failed += bool(found["error"])
            out.write(json.dumps(found, ensure_ascii=False) + "\n")
            out.flush()
    finally:
        if given.out:
            out.close()
    if failed:
        print(f'error: {failed} of {len(items)} questions have no answer; "error" says why', file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
