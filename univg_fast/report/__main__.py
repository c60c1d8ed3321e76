"""`python -m univg_fast.report RUN_DIR` makes the page of a run folder anew; several folders make one that compares."""

from __future__ import annotations

import argparse
import sys

from univg_fast.report.compare import write_comparison
from univg_fast.report.html import write_report


def main(argv: list[str] | None = None) -> int:
    """Write the page; exit code 2 and one line of text if a folder is not there."""
    parser = argparse.ArgumentParser(prog="python -m univg_fast.report", description=__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="the run.dir of a training run")
    parser.add_argument("--out", default="compare.html", help="where the page of several runs goes (%(default)s)")
    given = parser.parse_args(argv)
    try:
        several = len(given.run_dirs) > 1
        page = write_comparison(given.run_dirs, given.out) if several else write_report(given.run_dirs[0])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
