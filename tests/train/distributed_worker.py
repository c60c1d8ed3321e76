"""Run by test_distributed.py under torchrun: `distributed_worker.py MODE`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.rewards import check_terms


def collectives() -> None:
    rank = distributed.rank()
    both = distributed.reduce_floats({"b": rank + 0.1, "a": 1.0}, {"b2": -rank, "c": rank * 10.0})
    assert both == {"a": 2.0, "b": 0.1 + 1.1, "b2": 0.0, "c": 10.0}, both
    assert distributed.reduce_floats({"x": 1.0 / 3}) == {"x": 2.0 / 3}
    assert distributed.gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert distributed.broadcast_object(f"from {rank}") == "from 0"
    assert distributed.all_or_none("counting", lambda: rank) == rank
    assert distributed.is_main() == (rank == 0)
    sys.stdout.write(f"rank {rank} fine\n")  # print may write text and line end apart, and ranks share the pipe
    sys.stdout.flush()


def one_rank(fails: Callable[[], Any]) -> None:
    """Rank 1 fails while rank 0 waits for it in a collective."""
    if distributed.rank() == 1:
        fails()
    distributed.reduce_floats({"x": 1.0})


def together() -> None:
    def work() -> None:
        if distributed.rank() == 1:
            raise OSError("no such tape")

    distributed.all_or_none("winding the tape", work)


def mistake() -> None:
    """What a user gets wrong, refused by the package."""
    check_terms({"nonsense": 1.0})


def plans() -> None:
    """Ranks that read different headers would each train something else, and say nothing."""
    from univg_fast.structs import BadRecord
    from univg_fast.train.rows import reduce_step

    rank = distributed.rank()
    assert reduce_step({"x": 1.0}, digest=7, maxima={"m": rank}) == {"x": 2.0, "m": 1.0}
    both = BadRecord("f:1", "missing", "f:1: gone")
    mine = BadRecord("f:2", "decode", "f:2: cannot open the image b.png: stale")
    reduce_step({"x": 1.0}, digest=7 + rank, refused=[both, mine][: 1 + rank])


def attention() -> None:
    """Another face on one rank, as `auto` takes where a library is broken on one machine."""
    from univg_fast.config import Config, ModelConfig
    from univg_fast.data.samples import make_processor
    from univg_fast.data.tokenizer import build_tokenizer
    from univg_fast.model.attention import choose_attention
    from univg_fast.train.making import agree_on_attention, make_policy
    from univg_fast.train.setup import Inputs

    inputs, cpu = Inputs({"sft": []}, make_processor(build_tokenizer(["x"]))), torch.device("cpu")
    agree_on_attention(choose_attention("auto", cpu, torch.float32, 4, 2, 16))
    config = Config(model=ModelConfig(attention="dense" if distributed.rank() else "torch"))
    make_policy("sft", config, inputs, config.model.path, cpu)


def interface() -> None:
    sys.stdout.write(f"gloo goes by {os.environ.get('GLOO_SOCKET_IFNAME')}\n")


def hang() -> None:
    if distributed.rank() == 1:
        time.sleep(600)
    torch.distributed.barrier()


def main() -> None:
    distributed.init(timeout_s=10 if sys.argv[1] == "hang" else 600)
    modes = {
        "collectives": collectives,
        "bug": lambda: one_rank(lambda: {}["lost key"]),
        "mistake": lambda: one_rank(mistake),
        "together": together,
        "everybody": mistake,
        "plans": plans,
        "attention": attention,
        "hang": hang,
        "interface": interface,
    }
    modes[sys.argv[1]]()


if __name__ == "__main__":
    distributed.run(main)
