"""The command: proves every op against fp64, then times it against its peers on this machine.

    python -m bench.ops [--device cpu|cuda] [--only PREFIX …] [--without VARIANT …] [--repeats 7]
        [--budget SECONDS] [--out FILE.jsonl]

The same on a CPU and on an NVIDIA GPU. A variant that is wrong is printed as wrong and not timed; if it is one of this
project's own faces, the command ends with 1. Prints the targets of the project with what was reached.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name begins with one of these")
    parser.add_argument("--without", nargs="+", default=[], help="variants to leave out, such as torch.compile")
    parser.add_argument("--repeats", type=int, default=7, help="rounds at most, after one to warm up")
    parser.add_argument("--budget", type=float, help="seconds for all cases, which share them; 520, on a GPU 400")
    parser.add_argument(
        "--size", choices=("full", "tiny"), default="full", help="tiny: to try the code, not the machine"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--out", type=Path, help="write the rows to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()  # before the imports below, which take seconds
    from . import table, targets
    from .cases import all_cases
    from .ceilings import measure_ceilings
    from .device import find_device
    from .harness import stamp
    from .run import Limits, run_cases, save

    device = find_device(options.device)
    tiny = options.size == "tiny"
    cases = [c for c in all_cases("tiny" if tiny else device.kind) if c.name.startswith(tuple(options.only))]
    if not cases:
        raise SystemExit(f"bench: no case begins with {' or '.join(options.only)}; --list names them all")
    if options.list:
        print("\n".join(c.name for c in cases))
        return
    origin = stamp(device)
    ceilings = measure_ceilings(device, scale=1e-4 if tiny else 1.0)
    print(table.heading(origin, ceilings), flush=True)
    rows = []
    limits = Limits(options.repeats, options.budget or device.budget, frozenset(options.without))
    for of_case in run_cases(cases, device, ceilings, limits):
        rows += of_case
        print(table.block(of_case), flush=True)
        if options.out:
            save(options.out, rows, origin)  # after each case: whoever ends this command keeps what there is
    if not tiny:
        print(f"\n{targets.text(rows)}", flush=True)
    wrong = [f"{r['case']}: {r['variant']} is {r['status']}" for r in rows if r.get("own") and r["status"] != "timed"]
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
