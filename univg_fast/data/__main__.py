"""`python -m univg_fast.data show FILE` and `python -m univg_fast.data convert IN OUT --to FORMAT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from .convert import convert
from .coordinates import SYSTEMS
from .findings import SHOWN
from .formats import FORMATS
from .scan import scan


def main(argv: Sequence[str] | None = None) -> int:
    """0: everything was read; 1: some entries were not, or there are none; 2: wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m univg_fast.data", description="Look at data files, and convert them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="say what a file holds, with one rendered example")
    change = commands.add_parser("convert", help="write a file in another format (docs/data.md)")
    for command in (show, change):
        command.add_argument(
            "file", metavar="IN", help="JSONL, JSON list, parquet, or LLaMA-Factory's dataset_info.json"
        )
        command.add_argument("--coordinates", choices=SYSTEMS, help="what the file's numbers mean, where it is wrong")
        command.add_argument("--image-root", help="where relative image paths start (default: at the file's folder)")
    change.add_argument("out", metavar="OUT", help="its suffix decides: .json a list, .parquet parquet, else JSONL")
    change.add_argument("--to", required=True, choices=tuple(FORMATS), help="the format to write")
    given = parser.parse_args(argv)
    entry: dict[str, Any] = {"path": given.file, "coordinates": given.coordinates}
    entry |= {"image_root": given.image_root} if given.image_root else {}
    try:
        if given.command == "show":
            _, report = scan([entry])
            print(report.summary(), *report.details(), sep="\n")
            bad, good = list(report.bad), report.good
        else:
            done = convert(entry, given.out, given.to)
            print(f"{done.written} rows of {given.to} in {given.out}, {done.summary()}")
            bad, good = done.bad, done.written
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for entry_left in bad[:SHOWN]:
        print(f"left out {entry_left.message}", file=sys.stderr)
    if not good:
        nothing = "nothing was written, " if given.command == "convert" else ""
        print(f"error: {given.file}: {nothing}there is no good entry in it", file=sys.stderr)
    return 1 if bad or not good else 0


if __name__ == "__main__":
    sys.exit(main())
