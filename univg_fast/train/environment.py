"""What a run's figures were measured on: hardware, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from univg_fast import distributed

PACKAGES = (
    "univg-fast",
    "torch",
    "triton",
    "transformers",
    "deepspeed",
    "numpy",
    "peft",
    "liger-kernel",
    "flash-attn",
    "xformers",
)


def describe() -> dict[str, Any]:
    """Hardware, versions and commit, for env.json and for benchmark rows."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "ranks": distributed.world_size(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "commit": commit(),
    }


def installed(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def commit() -> str | None:
    """The source tree's commit, with "+" where it has changes; None outside a git checkout of this code."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # installed inside of another project's checkout?
        return _git("describe", "--always", "--dirty=+", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    here = Path(__file__).parent
    return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
