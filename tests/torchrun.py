"""How tests start processes of several ranks, and servers: with ports that nobody can take in between."""

from __future__ import annotations

import os
import socket
import sys


def torchrun(ranks: int) -> list[str]:
    """Words that start a script or `-m MODULE` on `ranks` processes of this machine; 0: plain python.

    torchrun's store listens on a port that the system gives it. One that a test asked for before could be another
    process's by then. No name of this machine is looked up.
    """
    if not ranks:
        return [sys.executable]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--rdzv_backend", "c10d"]
    return [*start, "--rdzv_endpoint", "127.0.0.1:0", "--local_addr", "127.0.0.1"]


def free_port() -> int:
    """For what must be told a port: below those that the system gives to anybody who asks for any."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("no free port between 20000 and 32000 on 127.0.0.1")
