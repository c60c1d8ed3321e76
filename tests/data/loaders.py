"""Loaders of the tests, and what a batch of theirs holds."""

from collections.abc import Callable
from typing import Any

from univg_fast.data.loader import SampleLoader
from univg_fast.data.windows import Planning

ROWS = Planning(budget=200, window=24)


def loader_of(records, processor, **changes):
    options = {"seed": 5, "with_response": True} | changes
    return SampleLoader(records, processor, options.pop("batch_size", 8), **options)


def uids(samples):
    return [sample.record.uid for sample in samples]


def rows(batch):
    return [uids(row.samples) for row in batch.rows]


def counted(monkeypatch: Any, module: Any, name: str) -> tuple[list[str], Callable[..., Any]]:
    """(uids of the records that `module.name` is called with from now on, the function itself)."""
    called, original = [], getattr(module, name)

    def counting(record: Any, *rest: Any) -> Any:
        called.append(record.uid)
        return original(record, *rest)

    monkeypatch.setattr(module, name, counting)
    return called, original
