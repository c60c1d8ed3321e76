"""`python -m univg_fast.report RUN_DIR` makes the page of a run folder anew."""

from __future__ import annotations

import argparse
import sys

from univg_fast.report.html import write_report


def main(argv: list[str] | None = None) -> int:
    """Write the page; exit code 2 and one line of text if the folder is not there."""
    parser = argparse.ArgumentParser(prog="python -m univg_fast.report", description=__doc__)
    parser.add_argument("run_dir", help="the run.dir of a training run")
    try:
        page = write_report(parser.parse_args(argv).run_dir)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
