"""Reward terms of the user's own: `file.py:name`."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np

from .answers import Answers, Array, Term


def is_own(name: str) -> bool:
    return ".py:" in name


def own_term(name: str) -> Term:
    """The function NAME of FILE.py, a path from the working directory: Answers -> B finite numbers. ValueError for
    a file or function that is none."""
    path, _, function = name.rpartition(":")
    found = _load(str(Path(path).resolve()), function)

    def term(answers: Answers) -> Array:
        values = np.asarray(found(answers), np.float64)
        if values.shape != (len(answers.texts),) or not np.isfinite(values).all():
            got = f"shape {list(values.shape)}" if values.shape != (len(answers.texts),) else "NaN or an infinity"
            raise ValueError(
                f"reward {name}: expected {len(answers.texts)} finite numbers, one a completion, got {got}"
            )
        return values

    return term


@cache
def _load(path: str, function: str) -> Term:
    if not Path(path).is_file():
        raise ValueError(f"rewards.terms: {path}:{function}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"univg_fast_own_{abs(hash(path))}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"rewards.terms: {path}:{function}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"rewards.terms: {path}:{function}: importing the file failed: {error!r}") from error
    term = getattr(module, function, None)
    if not callable(term):
        names = ", ".join(n for n, x in vars(module).items() if callable(x) and not n.startswith("_")) or "none"
        raise ValueError(f"rewards.terms: {path}:{function}: expected a function of the file ({names})")
    return term
