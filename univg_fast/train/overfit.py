"""`data.overfit=N`: train on N records, and ask about the same ones. What cannot learn them by heart is broken."""

from __future__ import annotations

from dataclasses import replace

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.structs import Record
from univg_fast.train.setup import Inputs


def overfit(config: Config, inputs: Inputs) -> Inputs:
    """The inputs as `data.overfit` wants them: the first N records of each stage, evaluated on those that have a box.

    Unchanged where it is null. The tokenizer stays that of all records.
    """
    if config.data.overfit is None:
        return inputs
    records = {use: list(inputs.records[use][: config.data.overfit]) for use in config.stages}
    trained: dict[str, Record] = {r.uid: r for use in config.stages for r in records[use] if r.box is not None}
    counts = " and ".join(f"{len(part)} of data.{use}" for use, part in records.items())
    if distributed.is_main():
        print(f"data.overfit: trains on the first {counts} only, and is evaluated on these {len(trained)}", flush=True)
        for use in config.stages:
            if getattr(config, use).max_steps is None:
                print(f"data.overfit: {use}.max_steps is null, so that an epoch is soon over; give it", flush=True)
    return replace(inputs, records=inputs.records | records | {"eval": list(trained.values())})
