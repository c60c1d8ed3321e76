"""Run by test_trl_liger.py under an older TRL: its trainer with and without the drop-in -> JSON on the last line."""

from __future__ import annotations

import gc
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from integrations import trl_problem

from univg_fast.integrations.trl import patch

NO_LAYERS = dict.fromkeys(("rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy"), False)
SETTINGS: dict[str, Any] = {"num_iterations": 2, "max_steps": 2, "temperature": 1.3}


def main(folder: Path) -> None:
    logs, gradients = {}, {}
    for side in ("theirs", "ours", "phi"):
        made = trl_problem.trainer(folder / side, use_liger_kernel=True, liger_kernel_config=NO_LAYERS, **SETTINGS)
        name = "liger_loss" if hasattr(made, "liger_loss") else "liger_grpo_loss"
        before = getattr(made, name)
        before.compiled = False
        with nullcontext() if side == "theirs" else patch(made, phi="iou" if side == "phi" else None):
            logs[side], gradients[side] = trl_problem.run(made)
        assert getattr(made, name) is before and "compute_liger_loss" not in vars(made)
        gc.freeze()
    made.__class__ = type("Mine", (type(made),), {"compute_loss": lambda *args, **more: torch.zeros(())})
    with pytest.raises(ValueError, match="Mine has a compute_loss of its own"):
        patch(made)
    worst = 0.0
    for ours, theirs in zip(gradients["ours"], gradients["theirs"], strict=True):
        assert ours.keys() == theirs.keys()
        worst = max(worst, *(((ours[k] - g).abs().max() / g.abs().max()).item() for k, g in theirs.items()))
    sizes = {side: sum(g.abs().sum().item() for g in gradients[side][0].values()) for side in gradients}
    found = {"logs": logs, "gradient_error": worst, "phi": sizes["phi"] / sizes["ours"]}
    print(json.dumps({"version": trl.__version__} | found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
