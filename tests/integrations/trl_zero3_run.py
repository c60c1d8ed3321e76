"""Run by test_trl_runs.py in its own process: TRL under ZeRO-3, as it comes and patched -> JSON on the last line."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from integrations import trl_problem
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from univg_fast.integrations.trl import patch, patch_logprobs

ZERO3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def main(folder: Path) -> None:
    found: dict[str, Any] = {}
    for side in ("theirs", "patch", "patch_logprobs"):
        unset_hf_deepspeed_config()  # else the next model is made in shards, before its noise
        made = trl_problem.trainer(folder / side, deepspeed=ZERO3, num_iterations=2, max_steps=2)
        with nullcontext() if side == "theirs" else patch(made) if side == "patch" else patch_logprobs():
            found[side], _ = trl_problem.run(made)
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
