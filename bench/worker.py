"""One side of `bench.compare`: `python bench/worker.py TREE DEVICE SIZE` times calls of the code in TREE when asked.

A line of JSON in, a line out: {"case": NAME} builds and proves a case's own compiled variants, {"variant": NAME} times
one call of it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def find_code(tree: Path) -> None:
    """This process imports TREE's packages. An editable install would hand out its own checkout's instead."""
    here = tree == Path(__file__).resolve().parents[1]
    if not here:
        sys.meta_path[:] = [
            f for f in sys.meta_path if str(getattr(f, "__module__", "")).startswith("_frozen_importlib")
        ]
    sys.path[:] = [str(tree), str(tree / "kernels"), *(p for p in sys.path[1:] if Path(p or ".").resolve() != tree)]
    import univg_kernels

    import univg_fast

    for package in (univg_kernels, univg_fast):
        if tree not in Path(str(package.__file__)).resolve().parents:
            raise SystemExit(f"bench.worker: {package.__name__} is {package.__file__}, which is not in {tree}")


def main() -> None:
    tree, kind, size = Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3]
    talk, sys.stdout = os.fdopen(os.dup(1), "w", buffering=1), sys.stderr  # what is printed on the way is no answer
    find_code(tree)
    from bench.cases import all_cases
    from bench.device import find_device
    from bench.harness import once
    from bench.shapes import DTYPES, Shape
    from bench.verdict import failure, prove
    from bench.work import Case, Variant, Work

    device = find_device(kind)
    cases, variants = {c.name: c for c in all_cases("tiny" if size == "tiny" else kind)}, dict[str, Variant]()

    def own(case: Case, shape: Shape) -> dict[str, Variant]:
        work = case.build(shape, DTYPES[case.dtype], device)
        return {n: v for n, v in work.variants.items() if v.own and n != "univg reference" and ", " not in n}

    def build(case: Case) -> str:
        """What is wrong, or ""; fills `variants`."""
        variants.clear()
        device.release()
        verdicts = prove(Work(own(case, case.shape.proof())), DTYPES[case.dtype])
        variants.update(own(case, case.shape))
        return "; ".join(f"{name} is {verdict.problem}" for name, verdict in verdicts.items() if not verdict.right)

    for line in sys.stdin:
        question = json.loads(line)
        if "case" in question:
            try:
                problem = build(cases[question["case"]])
            except Exception as error:  # the other commit may not know what today's bench asks for
                problem = failure(error)
            answer: dict[str, Any] = {"problem": problem, "variants": list(variants)}
        else:
            answer = {"seconds": once(variants[question["variant"]].prepare, device, device.modes[0]).seconds}
        talk.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
