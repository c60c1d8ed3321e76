"""The processes of a run: start, small collectives, and failing together.

Works under torchrun and without it (then the world is this one process). gloo on a CPU, nccl on GPUs.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from univg_fast.leaving import exit_now, ignore_lost_console, is_own_check, keep_lines_whole, leave_with, tell_torchrun

T = TypeVar("T")
_FAILED = "univg_fast/failed"  # key in the rendezvous store: who failed first, and with what
_host: dist.ProcessGroup | None = None  # where the default group is nccl: a gloo group for what lies on the host
_timeout = timedelta(seconds=600)  # of a collective, in every group
CONNECT_S = 300.0  # for the hosts to reach each other: all are there when they begin


class StopRun(Exception):
    """All ranks end here together, with exit code `code`, as they were asked to. Raised on every rank alike."""

    code = 0


class RankError(RuntimeError):
    """Something failed on one or more ranks; the message names them. Raised on every rank alike."""


def init(timeout_s: float = 600.0) -> torch.device:
    """Join the process group and return this rank's device. Call it before anything imports deepspeed.

    Uses the GPUs where CUDA is there, unless DS_ACCELERATOR=cpu is set. A rank that waits longer than
    `timeout_s` for the others in one collective fails.
    """
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available()
    if not on_cpu and local_rank >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"local rank {local_rank} has no GPU: {count} visible. Use --nproc_per_node {count} or less")
    device = torch.device("cpu") if on_cpu else torch.device("cuda", local_rank)
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    else:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        global _host, _timeout
        _timeout = timedelta(seconds=timeout_s)
        if "RANK" not in os.environ:
            os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
            alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
            dist.init_process_group("gloo" if on_cpu else "nccl", timeout=_timeout, **alone)
        elif on_cpu:  # torchrun
            with _between_hosts():
                dist.init_process_group("gloo", timeout=_timeout)
        else:
            dist.init_process_group("nccl", timeout=_timeout, device_id=device)
        if not on_cpu:
            with _between_hosts():
                _host = dist.new_group(backend="gloo", timeout=min(_timeout, timedelta(seconds=CONNECT_S)))
            dist.distributed_c10d._set_pg_timeout(_timeout, _host)
    _prepare_deepspeed(on_cpu)
    return device


@contextmanager
def _between_hosts() -> Iterator[None]:
    """For making a gloo group: it goes by the address of the host's name, which on Debian and Ubuntu is 127.0.1.1."""
    here = [name for _, name in socket.if_nameindex()]
    nccls = os.environ.get("NCCL_SOCKET_IFNAME", "").removeprefix("=")
    if nccls in here:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", nccls)
    try:
        yield
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # the rendezvous failed, not gloo
            raise
        given = os.environ.get("GLOO_SOCKET_IFNAME", "not set, so that the host's name decides")
        raise ValueError(
            f"rank {os.environ['RANK']} on {socket.gethostname()} cannot reach the others "
            f"({str(error).strip().splitlines()[0]}). GLOO_SOCKET_IFNAME is {given}; set it, and NCCL_SOCKET_IFNAME, "
            f"to an interface through which the nodes reach each other, of {', '.join(here)}"
        ) from error


def limit_deepspeed() -> None:
    """In DeepSpeed's groups, too, a collective may take as long as `init` says. Collective; around its set-up.

    It makes them with the backend's own limit: NCCL's is ten minutes, and would end all ranks before a watchdog that
    waits for longer has named one.
    """
    from deepspeed.utils import groups

    groups._get_data_parallel_group()  # the one that all go through: made here, if it is not there yet
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(_timeout, group)


def _prepare_deepspeed(on_cpu: bool) -> None:
    import deepspeed
    import deepspeed.ops

    if on_cpu:  # else its gloo backend compiles a C++ helper at start-up, for tens of seconds
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)  # deepspeed's own calls
    deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl", verbose=False)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which writes the logs."""
    return rank() == 0


def warn(text: str) -> None:
    """On stderr, from rank 0."""
    if is_main():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def store() -> dist.Store | None:
    """The rendezvous store, which any rank may read and write at any time; None for a single process."""
    return dist.distributed_c10d._get_default_store() if world_size() > 1 else None


def own_store() -> dist.Store | None:
    """The same store through a connection of its own: for a thread, which must not wait for other threads' requests."""
    shared = store()
    return None if shared is None else shared.clone()  # type: ignore[attr-defined]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier(_host)


def reduce_floats(sums: Mapping[str, float], maxima: Mapping[str, float] | None = None) -> dict[str, float]:
    """Sum the first mapping and take the maximum of the second over all ranks, in one collective of the hosts.

    Keys must be the same on every rank. Every rank gets bit-equal results. No device is waited for.
    """
    maxima = maxima or {}
    if world_size() == 1:
        return {key: float(value) for key, value in (*sums.items(), *maxima.items())}
    values = [float(sums[key]) for key in sorted(sums)] + [float(maxima[key]) for key in sorted(maxima)]
    mine = torch.tensor(values, dtype=torch.float64)
    everyone = torch.empty(world_size() * len(values), dtype=torch.float64)
    dist.all_gather_into_tensor(everyone, mine, _host)
    table = everyone.view(world_size(), len(values))
    summed, largest = table.sum(0).tolist(), table.amax(0).tolist()
    return dict(zip(sorted(sums), summed, strict=False)) | dict(zip(sorted(maxima), largest[len(sums) :], strict=True))


def gather_objects(item: T) -> list[T]:
    """Every rank's picklable item, by rank, on every rank."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item, _host)
    return items


def gather_on_main(item: T) -> list[T]:
    """Every rank's picklable item, by rank, on rank 0; nothing on the others, which need not hold what all have."""
    if world_size() == 1:
        return [item]
    items: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(item, items, dst=0, group=_host)
    return items or []


def send_object(item: Any, rank: int) -> None:
    """To one other rank, which must be in `receive_object`."""
    dist.send_object_list([item], dst=rank, group=_host)


def receive_object(rank: int) -> Any:
    """What that rank sends here."""
    items: list[Any] = [None]
    dist.recv_object_list(items, src=rank, group=_host)
    return items[0]


def broadcast_object(item: T) -> T:
    """Rank 0's item on every rank; the others' is ignored."""
    items = [item]
    if world_size() > 1:
        dist.broadcast_object_list(items, src=0, group=_host)
    return items[0]


def all_or_none(what: str, function: Callable[[], T]) -> T:
    """Call `function` on every rank; where it raises on any, raise RankError on all, naming rank and cause.

    Collective. `function` itself must not communicate: a rank that fails would leave the others waiting.
    """
    result, problem, cause = None, "", None
    try:
        result = function()
    except Exception as error:
        problem, cause = f"{type(error).__name__}: {error}", error
    problems = gather_objects(problem)
    if any(problems):
        named = "; ".join(f"rank {r}: {p}" for r, p in enumerate(problems) if p)
        raise RankError(f"{what} failed on {named}") from cause
    return result  # type: ignore[return-value]


def run(main: Callable[[], None]) -> None:
    """Call `main`. A failure ends this process at once, so that torchrun ends the others.

    The culprit is named. A ValueError that this package raises is a user's mistake and is printed without a traceback;
    so is a failure that follows another rank's. A StopRun is no failure: all ranks leave with its code. A console that
    is lost under way ends nothing.
    """
    keep_lines_whole()
    ignore_lost_console()
    try:
        main()
    except StopRun as stop:
        if is_main():
            print(stop, file=sys.stderr, flush=True)
        if stop.code:
            tell_torchrun(str(stop))
        leave(stop.code)
    except Exception as error:
        _fail(error)
    if world_size() > 1:
        dist.destroy_process_group()
        leave(0)


def leave(code: int) -> NoReturn:
    """End this process, without the interpreter's own end where there are others."""
    logging.shutdown()
    exit_now(code)


def fail(last_words: str) -> NoReturn:
    """End this process at once, and so the others; `last_words` say why, and stand in torchrun's report. Any thread."""
    leave_with(last_words)


def _fail(error: Exception) -> NoReturn:
    mine = f"rank {rank()} of {world_size()}"
    if isinstance(error, RankError):  # all ranks know it
        leave_with(f"error: {error}" if is_main() else "")
    first = _first_failure(f"{mine}: {type(error).__name__}: {error}")
    if first is not None and not first.startswith(mine + ":"):
        same = first.endswith(f": {type(error).__name__}: {error}")  # all ranks refuse the same thing
        leave_with("" if same else f"{mine} stops because another rank failed first: {first}", is_culprit=False)
    if isinstance(error, ValueError) and is_own_check(error):
        # before the group exists the ranks cannot agree on who speaks
        leave_with(f"error: {error}" if dist.is_initialized() or os.environ.get("RANK", "0") == "0" else "")
    traceback.print_exception(error)
    leave_with(f"{mine} failed: {type(error).__name__}: {error}")


def _first_failure(message: str) -> str | None:
    """Register this failure; who failed first, as far as the store can still tell."""
    shared = store()
    if shared is None:
        return None
    try:
        if shared.add(_FAILED + "/count", 1) == 1:
            shared.set(_FAILED, message)
        shared.wait([_FAILED], timedelta(seconds=5))
        return shared.get(_FAILED).decode()
    except (RuntimeError, dist.DistError):  # the store went down with the rank that held it
        return None
