"""`torchrun --nproc_per_node N -m univg_fast.train --config NAME|FILE [--section.key=value ...]`.

Evaluates the untrained model, runs the configured stages, evaluates after each, and writes the report. Everything a
run leaves lies in run.dir; a run that was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

if __name__ == "__main__":
    import faulthandler
    import os
    import signal
    import sys

    # Until the run hears signals itself (train/stopping.py), Ctrl-C just ends it: nothing is there to be saved.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.enable()  # a crash inside of a library tells where
    faulthandler.register(signal.SIGUSR1)

    from univg_fast.config import ConfigError, load_config

    try:
        given = load_config(sys.argv[1:])
    except ConfigError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    # Late: torch, transformers and deepspeed take seconds to import, and a mistyped key should not wait for them.
    from univg_fast import distributed
    from univg_fast.train.road import main

    distributed.run(lambda: main(given))
