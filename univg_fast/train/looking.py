"""Headers of image files, which the ranks share out: a disk's server is asked for each file once, not by every rank."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from zlib import crc32

from univg_fast import distributed
from univg_fast.data.errors import Refused
from univg_fast.data.images import Header, probe_all


def look_together(paths: list[str], pool: ThreadPoolExecutor) -> list[Header | Refused]:
    """As `probe_all`, each file opened by one rank. Collective.

    What one of them finds holds for all, so that images must be on a disk that all see, or be the same on each.
    RankError where a rank fails, or asks about files of other names.
    """
    names = "\n".join(path.rpartition("/")[2] for path in paths)
    agree_on(f"{len(paths)} images", crc32(names.encode(errors="replace")))
    rank, world = distributed.rank(), distributed.world_size()
    mine = distributed.all_or_none("reading images' headers", lambda: probe_all(paths[rank::world], pool))
    parts = distributed.gather_objects(mine)
    return [parts[at % world][at // world] for at in range(len(paths))]


def agree_on(count: str, digest: Any) -> None:
    """RankError unless every rank has read the same: they would train on different batches, and one would hang.

    All agreeing goes through here, so that ranks which are at different places find that, too.
    """
    all_ranks = distributed.gather_objects((count, digest))
    if any(other != all_ranks[0] for other in all_ranks):
        counts = ", ".join(f"rank {rank}: {count}" for rank, (count, _) in enumerate(all_ranks))
        raise distributed.RankError(f"data: the ranks read different records ({counts}); do all see the same files?")
