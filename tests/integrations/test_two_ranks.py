"""ms-swift and OpenRLHF on two ranks: their sums over ranks, the drop-ins', and DDP's gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from integrations.hosts.openrlhf import VERSION
from ops.peers.source import need

need("ms_swift", "4.6.0")
need("openrlhf", VERSION)


@pytest.mark.slow
def test_two_ranks_are_the_hosts(python_launcher: Any) -> None:
    done = python_launcher(str(Path(__file__).with_name("hosts") / "two_ranks_worker.py"), ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"ms_swift"')]
    found = json.loads(line)
    assert set(found) == {"ms_swift", "phi", "openrlhf"} and max(found.values()) < 1e-5, found
