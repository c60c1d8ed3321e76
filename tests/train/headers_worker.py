"""Run by test_headers.py: `headers_worker.py FOLDER` on FOLDER/sft.jsonl; each rank writes FOLDER/rank_N.json."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from univg_fast import distributed
from univg_fast.config import load_config
from univg_fast.data.loader import SampleLoader
from univg_fast.data.scan import scan
from univg_fast.data.windows import Planning
from univg_fast.train.looking import agree_on, look_together
from univg_fast.train.setup import prepare, scan_use

OPENED: list[str] = []


def count(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(".png"):
        OPENED.append(Path(arguments[0]).name)


def opened() -> list[str]:
    names = sorted(OPENED)
    OPENED.clear()
    return names


def counting(folder: Path) -> dict[str, Any]:
    """What this rank opens while all records are looked at and while its first window is planned, and what it found."""
    entries = [str(folder / "sft.jsonl")]
    given = [f"--data.sft={json.dumps(entries)}", "--data.grpo=[]", "--data.eval=[]", "--stages=[sft]"]
    more = ["--data.builtin=null", "--data.max_bad_fraction=1.0", f"--run.dir={folder / 'run'}"]
    config = load_config(["--config", "demo", *given, *more])
    if distributed.is_main():
        (folder / "run").mkdir()
    distributed.barrier()
    inputs = prepare(config, folder / "run")
    found: dict[str, Any] = {"scan": opened()}
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    planning = Planning(budget=512, window=16)
    loader = SampleLoader[None](
        inputs.records["sft"], inputs.processor, 8, seed=1, with_response=True, planning=planning, num_steps=2, **ranks
    )
    with loader:
        share = loader.share(0)
    found |= {"plan": opened(), "digest": share.digest, "refused": len(share.refused)}
    records, report = scan_use(config, "sft", entries)
    found["same"] = (records, report) == scan(entries, needs="response")
    return found | {"good": len(records), "bad": [entry.message for entry in report.bad]}


def failing(folder: Path) -> None:
    """Rank 1 fails, while rank 0 waits for its part."""
    pool = ThreadPoolExecutor(2)
    if distributed.rank() == 1:
        pool.shutdown()
    look_together([str(folder / f"{number}.png") for number in range(4)], pool)


def differing(folder: Path) -> None:
    """Rank 1 has read a shorter file, and is done."""
    if distributed.rank() == 1:
        agree_on("3 records", "digest")
    look_together([str(folder / "0.png")], ThreadPoolExecutor(2))


def main() -> None:
    distributed.init(timeout_s=300)
    folder = Path(sys.argv[1])
    sys.addaudithook(count)
    said: list[Any] = [counting(folder)]
    for fails in (failing, differing):
        try:
            fails(folder)
        except distributed.RankError as error:
            said.append(str(error))
    (folder / f"rank_{distributed.rank()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    distributed.run(main)
