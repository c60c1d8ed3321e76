"""What the comparisons of whole runs share; the command itself is run by ../conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def warm(trainer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned the answer's form, so that its samples get different rewards."""
    folder = tmp_path_factory.mktemp("warm")
    trainer(folder, stages="[sft]")
    return folder / "hf" / "sft"
