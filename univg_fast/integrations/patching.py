"""Replacing a host's names, so that everything can be put back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

_MARK = "_univg_fast_patched"  # on the owner: the names that are replaced just now
_NONE = object()


class Patch:
    """Replaced attributes of classes, modules and objects. They stay until `restore()`, or to the end of a block:

    with patch(trainer):
        trainer.train()
    """

    def __init__(self) -> None:
        self._old: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, new: Any) -> None:
        """Set `owner.name` to `new`; what was there, or that nothing was, is remembered.

        Raises ValueError where another patch has replaced it and is not restored yet.
        """
        marked: set[str] = vars(owner).get(_MARK, set())
        if name in marked:
            raise ValueError(
                f"{_words(owner)}.{name} is patched already, and a patch of a patch cannot be put back in order; "
                "restore() the first one (what its patch() returned), or leave its `with` block, before the second; "
                "where nobody has kept it, begin a new process"
            )
        old = vars(owner).get(name, _NONE)
        self._old.append((owner, name, old))  # first: what is put back needlessly does no harm
        setattr(owner, name, new)
        setattr(owner, _MARK, marked | {name})

    def restore(self) -> None:
        """Put everything back, the last first; a name that cannot be does not keep the others. Once: then nothing."""
        if not self._old:
            return
        owner, name, old = self._old.pop()
        try:
            if old is not _NONE:
                setattr(owner, name, old)
            elif name in vars(owner):
                delattr(owner, name)
        finally:
            try:
                _unmark(owner, name)
            finally:
                self.restore()

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


@contextmanager
def all_or_nothing() -> Iterator[Patch]:
    """A Patch that stays after the block, unless the block fails, at whatever (Ctrl-C as well): then it is undone."""
    done = Patch()
    try:
        yield done
    except BaseException:
        done.restore()
        raise


def _unmark(owner: Any, name: str) -> None:
    marked = vars(owner).get(_MARK, set())
    if marked - {name}:
        setattr(owner, _MARK, marked - {name})
    elif marked:
        delattr(owner, _MARK)


def _words(owner: Any) -> str:
    return getattr(owner, "__qualname__", None) or getattr(owner, "__name__", None) or type(owner).__qualname__
