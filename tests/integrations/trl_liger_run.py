"""Run by test_trl_liger.py under an older TRL: its trainer with and without the drop-in -> JSON on the last line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import trl
from integrations import trl_problem

from univg_fast.integrations.trl import patch

NO_LAYERS = dict.fromkeys(("rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy"), False)
RUNS: dict[str, dict[str, Any]] = {
    "dapo": {"num_iterations": 2},
    "dr_grpo": {"loss_type": "dr_grpo", "gradient_accumulation_steps": 1, "temperature": 1.3},
}


def main(folder: Path) -> None:
    found: dict[str, Any] = {"version": trl.__version__}
    for name, settings in RUNS.items():
        logs, gradients = {}, {}
        for side in ("theirs", "ours", "phi"):
            made = trl_problem.trainer(
                folder / name / side, use_liger_kernel=True, liger_kernel_config=NO_LAYERS, max_steps=2, **settings
            )
            object_of_trl = "liger_loss" if hasattr(made, "liger_loss") else "liger_grpo_loss"
            getattr(made, object_of_trl).compiled = False
            if side == "theirs":
                logs[side], gradients[side] = trl_problem.run(made)
                continue
            before = getattr(made, object_of_trl)
            with patch(made, phi="iou" if side == "phi" else None):
                logs[side], gradients[side] = trl_problem.run(made)
            assert getattr(made, object_of_trl) is before and "compute_liger_loss" not in vars(made)
        worst = 0.0
        for ours, theirs in zip(gradients["ours"], gradients["theirs"], strict=True):
            assert ours.keys() == theirs.keys()
            worst = max(worst, *(((ours[k] - g).abs().max() / g.abs().max()).item() for k, g in theirs.items()))
        weighted = sum(g.abs().sum().item() for g in gradients["phi"][0].values())
        plain = sum(g.abs().sum().item() for g in gradients["ours"][0].values())
        found[name] = {"logs": logs, "gradient_error": worst, "phi": weighted / plain}
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
