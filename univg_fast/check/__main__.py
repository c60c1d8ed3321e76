"""`python -m univg_fast.check --config NAME|FILE [--section.key=value …]`: may training start with this data?

Reads every record and decodes every image, writes data_report.json and check.html, and says how much memory and time
the run will take by formula. Exit code 0: it may; 1: it may not, with training's own message; 2: the configuration is
wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from univg_fast.config import ConfigError, load_config


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m univg_fast.check", description=__doc__, allow_abbrev=False)
    add = top.add_argument
    add("--config", help="a recipe's name or a file, as for univg_fast.train; any --section.key=value may follow")
    add("--out", type=Path, help="folder of data_report.json and check.html (default: RUN.DIR/check)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="that decode images (default: one for each core)")
    add("--gpus", type=int, default=8, help="that will train (default 8); packing is planned for so many ranks")
    add("--gpu-gib", type=float, default=80.0, help="memory of one (default 80)")
    add("--tflops", type=float, default=200.0, help="sustained by one in training (default 200)")
    add("--tokens-per-second", type=float, help="trained by one GPU: a run's console / its GPUs; wins over tflops")
    add("--decode-tokens-per-second", type=float, default=1000.0, help="sampled by one GPU (default 1000)")
    add("--response-tokens", type=int, help="mean of a completion (default: the sft files' mean, else the longest)")
    return top


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 training may start, 1 it may not, 2 the configuration is wrong."""
    given, keys = parser().parse_known_args(argv)
    try:
        config = load_config([*(["--config", given.config] if given.config else []), *keys])
        for name in (
            "threads",
            "gpus",
            "gpu_gib",
            "tflops",
            "tokens_per_second",
            "decode_tokens_per_second",
            "response_tokens",
        ):
            if getattr(given, name) is not None and not getattr(given, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')}: expected a number above 0, got {getattr(given, name)}")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # Late, as in univg_fast.train: a mistyped key should not wait for torch.
    from univg_fast.check.estimate import Machine
    from univg_fast.check.run import run

    machine = Machine(given.gpus, given.gpu_gib, given.tflops, given.tokens_per_second, given.decode_tokens_per_second)
    try:
        problems = run(
            config, given.out or Path(config.run.dir) / "check", machine, given.threads, given.response_tokens
        )
    except ValueError as error:
        problems = [str(error)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
