"""Run by test_save_killed.py: `kill_worker.py KILLS FOLDER SEED`; prints JSON.

One process after the other goes on from the newest checkpoint of FOLDER/ZERO_STAGE, trains and saves without pause, and
is killed at a random moment of a save. They are forked from this one, which has imported everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import deepspeed  # noqa: E402, F401
import torch  # noqa: E402
import transformers  # noqa: E402, F401
from engine_problem import OPTIM, TinyLM, batch  # noqa: E402
from engine_worker import SHARD_EVERYTHING, parameters  # noqa: E402

from univg_fast import distributed  # noqa: E402
from univg_fast.config import DeepSpeedConfig, SaveConfig  # noqa: E402
from univg_fast.train import checkpoint, engine  # noqa: E402
from univg_fast.train.resume import resume  # noqa: E402


def train(zero_stage: int, folder: Path, say: int) -> None:
    """Until killed. Says "resumed", then before each save "saving" and after it "saved", with step and weights."""
    distributed.init(timeout_s=300)
    config = DeepSpeedConfig(zero_stage=zero_stage, config=SHARD_EVERYTHING)
    ds = engine.make_engine(TinyLM(), OPTIM, config, 10_000)

    def tell(what: str, step: int) -> None:
        weights = torch.tensor(parameters(ds.module, zero_stage)).numpy().tobytes()
        told = [what, step, hashlib.sha256(weights).hexdigest(), time.monotonic()]
        os.write(say, (json.dumps(told) + "\n").encode())

    state = resume(folder, "sft", "auto", ds, "hash")
    assert ds.global_steps == state.step == state.cursor
    tell("resumed", state.step)
    while True:
        row = batch(state.step)[0]
        engine.train_step(ds, [ds(*row)])
        state.step, state.cursor = state.step + 1, state.cursor + 1
        tell("saving", state.step)
        checkpoint.save(folder, "sft", state, ds, "hash", SaveConfig(total_limit=1), must=True)
        tell("saved", state.step)


class Life:
    """A forked process from its start to its end by SIGKILL, and what it said."""

    def __init__(self, zero_stage: int, folder: Path) -> None:
        self.said: list[tuple[str, int, str, float]] = []
        self.ear, mouth = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                train(zero_stage, folder, mouth)
            finally:  # only by an error
                os._exit(1)
        os.close(mouth)
        self.rest = b""

    def listen(self, timeout: float) -> bool:
        """Hear what is said within `timeout` s; False at the end."""
        if not select.select([self.ear], [], [], timeout)[0]:
            return True
        heard = os.read(self.ear, 65536)
        *lines, self.rest = (self.rest + heard).split(b"\n")
        self.said += [tuple(json.loads(line)) for line in lines]
        return bool(heard)

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        while self.listen(1.0):
            pass
        return os.waitpid(self.pid, 0)[1]


def kill_one(zero_stage: int, folder: Path, rng: random.Random) -> Life:
    """A process that dies in its third save or a later one, as far into it as the dice say."""
    life, wanted = Life(zero_stage, folder), rng.randint(3, 5)
    deadline = time.monotonic() + 200
    while sum(what == "saving" for what, *_ in life.said) < wanted:
        if not life.listen(1.0) or time.monotonic() > deadline:
            raise SystemExit(f"a process died by itself, or hung; it had said {life.said[-3:]}")
    began, ended = ([when for what, _, _, when in life.said if what == which] for which in ("saving", "saved"))
    save_s = min(end - begin for begin, end in zip(began, ended, strict=False))
    time.sleep(max(0.0, rng.random() * save_s - (time.monotonic() - began[-1])))
    life.kill()
    return life


def main() -> None:
    kills, root, rng = int(sys.argv[1]), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
    report: dict[str, Any] = {"turns": 0, "kills": 0, "half_written": 0, "lost": [], "wrong": [], "steps": 0}
    weights: dict[tuple[int, int], str] = {}
    safe = dict.fromkeys(range(4), 0)
    last = 4  # they only look at what the kills before them have left
    while last:
        enough = report["half_written"] >= kills / 4 or report["kills"] >= 5 * kills  # not all dice hit a save
        last -= report["kills"] >= kills and enough
        zero_stage = report["turns"] % 4
        folder = root / str(zero_stage)
        life = kill_one(zero_stage, folder, rng)
        what, step, digest, _ = life.said[0]
        assert what == "resumed"
        if step < safe[zero_stage]:
            report["lost"].append([zero_stage, safe[zero_stage], step])
        if weights.setdefault((zero_stage, step), digest) != digest:
            report["wrong"].append([zero_stage, step])
        for what, step, digest, _ in life.said:
            weights[zero_stage, step] = digest
            if what == "saved":
                safe[zero_stage] = step
        report["turns"] += 1
        report["kills"] += last == 4
        report["half_written"] += last == 4 and bool(list(folder.glob(".tmp-sft_*-*")))
        report["steps"] = max(report["steps"], *safe.values())
    print("RESULT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
