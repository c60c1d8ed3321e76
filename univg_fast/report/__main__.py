"""`python -m univg_fast.report DIR` makes the page of a run's or an evaluation's folder anew; several make one page
that compares them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from univg_fast.report.compare import write_comparison
from univg_fast.report.compare_evaluations import write_evaluations
from univg_fast.report.evaluation import is_evaluation, write_evaluation
from univg_fast.report.html import write_report


def main(argv: list[str] | None = None) -> int:
    """Write the page; exit code 2 and one line of text if a folder is not there, or is not what the others are."""
    parser = argparse.ArgumentParser(prog="python -m univg_fast.report", description=__doc__)
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="run.dir of a training run, or --out of an evaluation")
    parser.add_argument("--out", default="compare.html", help="where the page of several goes (%(default)s)")
    given = parser.parse_args(argv)
    try:
        page = write_page(given.dirs, given.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    return 0


def write_page(dirs: Sequence[str], out: str) -> Path:
    """The page that suits the folders: what they hold decides. ValueError for runs and evaluations together."""
    of_evaluations = [path for path in dirs if is_evaluation(path)]
    if not of_evaluations:
        return write_comparison(dirs, out) if len(dirs) > 1 else write_report(dirs[0])
    if len(of_evaluations) < len(dirs):
        other = next(path for path in dirs if path not in of_evaluations)
        raise ValueError(f"report: expected runs or evaluations, got both: {other} holds no results.json")
    return write_evaluations(dirs, out) if len(dirs) > 1 else write_evaluation(dirs[0])


if __name__ == "__main__":
    sys.exit(main())
