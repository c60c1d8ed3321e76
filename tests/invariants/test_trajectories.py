"""Whole trajectories of training are equal, whatever is only a way of computing the same thing.

Eight steps of stage 1, and eight of stage 2 with two optimizer steps each. A residual is the signed difference of a
step's number from the first run's, over the largest number of that run. One step could hide a small bias, which a
trajectory adds up: so its mean must be 0 up to rounding, as well as its maximum. `-s` prints them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import timeless

pytestmark = pytest.mark.timeout(1800)  # two minutes of one core, all of them in the first test
EPS = torch.finfo(torch.float32).eps
MEAN, LARGEST = 16 * EPS, 64 * EPS  # of residuals. Measured: up to 1 and 5, and where DeepSpeed makes the norm 6 and 12
STEPS = 8
NUMBERS = ("loss", "grad_norm", "learning_rate", "scored_tokens", "kl", "entropy", "clip_ratio/region_mean", "reward")
EXACT, ROUNDING = "bit by bit", "up to rounding"

# run -> (what it does otherwise, how equal it must be)
ONE_RANK = {
    "again": ("nothing", EXACT),
    "two workers": ("two threads make samples and rows ahead of time", EXACT),
    "checkpointing": ("activations are computed again in the backward pass", EXACT),
    "two rows": ("accumulates gradients over two rows of several samples", ROUNDING),
    "apart": (
        "accumulates over a row for each sample; in stage 2 for each response, with a prompt of its own",
        ROUNDING,
    ),
    "kernels": ("losses in plain torch: model.kernels=reference", ROUNDING),
    "dense": ("attention with a mask of all pairs of tokens", ROUNDING),
    "zero 1": ("ZeRO 1", ROUNDING),
    "zero 2": ("ZeRO 2", ROUNDING),
    "zero 3": ("ZeRO 3", ROUNDING),
}
STAGE_1 = {"plain": ("transformers' own model on each sample, torch's cross entropy and AdamW", ROUNDING)}
STAGE_2 = {"images again": ("images are encoded in each pass, not once for all of a step", ROUNDING)}
TWO_RANKS = {f"zero {stage}": (f"two ranks, ZeRO {stage}", ROUNDING) for stage in range(4)}
COMPARED = [
    (ranks, f"{stage} {name}", *how)
    for ranks, stage, table in (
        (1, "sft", ONE_RANK | STAGE_1),
        (1, "grpo", ONE_RANK | STAGE_2),
        (2, "sft", TWO_RANKS),
        (2, "grpo", TWO_RANKS),
    )
    for name, how in table.items()
]
NOT_ON_ONE_ROW = ("two rows", "apart", "plain", "zero")
Steps = list[dict[str, Any]]


@pytest.fixture(scope="session")
def folders(python_launcher: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Ranks -> the folder with a folder for each run."""
    found = {}
    for ranks in (1, 2):
        found[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}")
        names = [name for number, name, *_ in COMPARED if number == ranks]
        names += ["sft", "grpo", "sft other seed", "grpo other seed"] if ranks == 1 else []
        done = python_launcher(
            str(Path(__file__).with_name("trajectory_worker.py")), str(found[ranks]), *names, ranks=ranks, timeout=1600
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return found


def steps_of(folder: Path) -> Steps:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS
    return rows


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("hf/*/model.safetensors")
    return load_file(path)


def residuals(got: Steps, want: Steps, key: str) -> torch.Tensor:
    """[STEPS] fp64."""
    a, b = (torch.tensor([row[key] for row in rows], dtype=torch.float64) for rows in (got, want))
    return (a - b) / b.abs().max().clamp(min=1e-30)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "name", "what", "how"), COMPARED, ids=[f"{r} {n}" for r, n, *_ in COMPARED])
def test_the_same_trajectory(folders: dict[int, Path], ranks: int, name: str, what: str, how: str) -> None:
    stage = name.split()[0]
    got, want = steps_of(folders[ranks] / name), steps_of(folders[1] / stage)
    one_row = not any(word in name for word in NOT_ON_ONE_ROW)
    assert want[0]["pack/rows"] == 1 and (got[0]["pack/rows"] == 1) == one_row
    found = {key: residuals(got, want, key) for key in NUMBERS if key in want[0] and key in got[0]}
    means, largest = ({k: float(f(x) / EPS) for k, x in found.items()} for f in (torch.mean, lambda x: x.abs().max()))
    weights, first = weights_of(folders[ranks] / name), weights_of(folders[1] / stage)
    gap = max(float((weights[key] - value).abs().max()) for key, value in first.items())
    told = " ".join(f"{key} {means[key]:+.1f} {largest[key]:.1f}" for key in found)
    print(f"\n{name} on {ranks}, {what}: mean and largest in eps: {told}; weights {gap / EPS:.1f}")
    if how == EXACT:
        assert timeless(got) == timeless(want) and gap == 0
    for key in found:
        assert abs(means[key]) <= MEAN / EPS and largest[key] <= LARGEST / EPS, key
    assert gap <= LARGEST


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_there_is_something_to_compare(folders: dict[int, Path], stage: str) -> None:
    """Weights move, losses and ratios with them; another seed is another run from its first step on."""
    rows, other = (steps_of(folders[1] / name) for name in (stage, f"{stage} other seed"))
    for a, b in zip(rows, other, strict=True):
        assert a["loss"] != b["loss"] and a["grad_norm"] != b["grad_norm"]
    assert len({row["loss"] for row in rows}) == STEPS and all(row["grad_norm"] > 1 for row in rows)  # clipped
    if stage == "sft":
        assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    else:
        assert all(row["frac_reward_zero_std"] == 0 and row["clip_ratio/region_mean"] > 0 for row in rows)
        assert rows[-1]["kl"] > 0.1
