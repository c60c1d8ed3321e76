"""Run by test_stop.py under torchrun: `stop_worker.py SMALL OUT`. Rank 1 is asked to stop after its first batch."""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoTokenizer

from univg_fast import distributed
from univg_fast.config import EvaluateConfig, RolloutConfig
from univg_fast.data.records import read_records
from univg_fast.data.samples import make_processor
from univg_fast.evaluate.run import Stopped, evaluate
from univg_fast.model import PackedModel, load_model

small, out = map(Path, sys.argv[1:])
distributed.init()
model = PackedModel(load_model(str(small / "model"))).eval()
processor = make_processor(AutoTokenizer.from_pretrained(small / "model"), prompt_template="short")
records = read_records(small / "data" / "eval.json")[0]
asked = []


def should_stop() -> bool:
    asked.append(1)
    return distributed.rank() == 1 and len(asked) > 2


config = EvaluateConfig(max_completion_length=4, prompts_per_batch=2)
try:
    evaluate(model, processor, records, config, RolloutConfig(), out.with_name("stopped"), should_stop=should_stop)
except Stopped:
    sys.stdout.write(f"rank {distributed.rank()} stopped\n")
    sys.stdout.flush()
done = evaluate(model, processor, records, config, RolloutConfig(), out)  # the ranks are still in step
assert done["n"] == len(records) == 8
