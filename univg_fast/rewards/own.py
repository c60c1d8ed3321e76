"""Reward terms of the user's own: `file.py:name`."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from functools import cache
from pathlib import Path

import numpy as np

from .answers import Answers, Array, Term

SHOWN = 200  # characters of a completion that an error message quotes


def is_own(name: str) -> bool:
    return ".py:" in name


def own_term(name: str) -> Term:
    """The function NAME of FILE.py, a path from the working directory: Answers -> B finite numbers. ValueError for
    a file or function that is none.

    Where it raises it is called again with halves of the batch, to name the completion that does it: log2(B) times
    and once more, on no more than B completions in all.
    """
    path, _, function = name.rpartition(":")
    found = _load(str(Path(path).resolve()), function)

    def numbers(answers: Answers) -> Array:
        return np.asarray(found(answers), np.float64)

    def term(answers: Answers) -> Array:
        expected = f"reward {name}: expected {len(answers.texts)} finite numbers, one a completion"
        try:
            values = numbers(answers)
        except Exception as error:  # whatever the user's function raises, or returns for numbers
            raise ValueError(f"{expected}, got {_told(error, path)}{_culprit(numbers, answers)}") from error
        if values.shape != (len(answers.texts),):
            raise ValueError(f"{expected}, got shape {list(values.shape)}")
        if not np.isfinite(values).all():
            raise ValueError(f"{expected}, got NaN or an infinity{_of(answers, int(np.argmin(np.isfinite(values))))}")
        return values

    return term


def _told(error: Exception, path: str) -> str:
    """The error, and the line of the user's file that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in reversed(frames) if Path(f.filename).resolve() == Path(path).resolve()), None)
    return f"{error!r}" + (f" at {path}:{line}" if line is not None else "")


def _culprit(numbers: Term, answers: Answers) -> str:
    """The first completion that raises by itself, looked for in halves; nothing where it does not do so alone."""
    start, end, proved = 0, len(answers.texts), True
    while end - start > 1:
        middle = (start + end) // 2
        proved = _raises(numbers, answers, start, middle)
        start, end = (start, middle) if proved else (middle, end)
    return _of(answers, start) if start < end and (proved or _raises(numbers, answers, start, end)) else ""


def _raises(numbers: Term, answers: Answers, start: int, end: int) -> bool:
    try:
        numbers(answers.part(start, end))
    except Exception:  # the one that is told already
        return True
    return False


def _of(answers: Answers, i: int) -> str:
    record, text = answers.records[i], answers.texts[i]
    shown = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return f", for completion {i} of record {record.uid} ({record.source}): {shown!r}"


@cache
def _load(path: str, function: str) -> Term:
    if not Path(path).is_file():
        raise ValueError(f"rewards.terms: {path}:{function}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"univg_fast_own_{abs(hash(path))}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"rewards.terms: {path}:{function}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks for its annotations there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        del sys.modules[spec.name]
        problem = f"importing the file failed: {_told(error, path)}"
        raise ValueError(f"rewards.terms: {path}:{function}: {problem}") from error
    term = getattr(module, function, None)
    if not callable(term):
        names = ", ".join(n for n, x in vars(module).items() if callable(x) and not n.startswith("_")) or "none"
        raise ValueError(f"rewards.terms: {path}:{function}: expected a function of the file ({names})")
    return term
