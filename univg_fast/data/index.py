"""The records of any number of files. Of a record only its place is held, and of its images the sizes: 32 bytes and 9
an image. It is parsed when it is used, without opening an image again."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, overload

import numpy as np

from univg_fast.structs import Record

from .files import DataFile
from .formats import read_row as read_formats
from .images import Header
from .jsonfile import MALFORMED, Row, read_row
from .mix import Mix
from .records import Reading, image_paths, make_record


class Records(Sequence[Record]):
    """What a scan found good, in the order of the files. `mix` says how often each file's records come in an epoch."""

    def __init__(self) -> None:
        self.files: list[tuple[DataFile, Reading, tuple[int, int]]] = []  # and (size, mtime) when it was scanned
        self._starts: list[int] = []  # the first record of each file
        self._offset, self._length = array("q"), array("Q")
        self._line, self._index, self._turn = array("I"), array("i"), array("I")
        self._image = array("I", [0])  # the first image of each record, and of a next one
        self._width, self._height, self._orientation = array("I"), array("I"), array("B")  # of each image
        self._hashes = array("Q")  # of the ids, until `finish`
        self._again: dict[int, int] = {}  # record -> how many before it and with it have its id
        self._open: dict[int, int] = {}
        self._lock = Lock()

    def begin(self, file: DataFile, reading: Reading) -> None:
        """What is added from here on stands in this file."""
        self.files.append((file, replace(reading, headers={}), _state(file.path)))
        self._starts.append(len(self))

    def add(self, row: Row, turn: int, uid: str, headers: Sequence[Header]) -> None:
        self._offset.append(row.offset)
        self._length.append(row.length)
        self._line.append(row.line)
        self._index.append(-1 if row.index is None else row.index)
        self._turn.append(turn)
        self._width.extend(header.size[0] for header in headers)
        self._height.extend(header.size[1] for header in headers)
        self._orientation.extend(header.orientation for header in headers)
        self._image.append(len(self._width))
        self._hashes.append(int.from_bytes(blake2b(uid.encode(errors="replace"), digest_size=8).digest(), "little"))

    def finish(self) -> None:
        """Find the ids that came before: their records get "@" and a number."""
        hashes = np.frombuffer(self._hashes, np.uint64) if self._hashes else np.zeros(0, np.uint64)
        order = np.argsort(hashes, kind="stable")
        again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
        count, last = 1, -1
        for at in again.tolist():
            count = count + 1 if at == last + 1 else 2
            self._again[int(order[at])] = count
            last = at
        del hashes
        self._hashes = array("Q")

    @property
    def _places(self) -> tuple[array[int], ...]:
        places = self._offset, self._length, self._line, self._index, self._turn
        return *places, self._image, self._width, self._height, self._orientation

    @property
    def mix(self) -> Mix:
        ends = [*self._starts[1:], len(self)]
        sizes = [end - start for start, end in zip(self._starts, ends, strict=True)]
        return Mix(tuple(sizes), tuple(file.weight for file, _, _ in self.files))

    def digest(self) -> str:
        """Equal where two processes found the same records at the same places of files of the same names."""
        digest = blake2b(repr([(file.name, file.weight) for file, _, _ in self.files]).encode(errors="replace"))
        for places in (*self._places, array("Q", self._starts)):
            digest.update(places.tobytes())
        return digest.hexdigest()

    def headers(self, at: int) -> list[Header]:
        """Of a record's images, as the scan found them."""
        images = range(self._image[at], self._image[at + 1])
        return [Header((self._width[i], self._height[i]), self._orientation[i]) for i in images]

    def __len__(self) -> int:
        return len(self._offset)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> list[Record]: ...
    def __getitem__(self, at: Any) -> Any:
        """Parse a record again. ValueError if its file has changed since the scan."""
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = at + len(self) if at < 0 else at
        if not 0 <= at < len(self):
            raise IndexError(f"record {at} of {len(self)}")
        number = bisect_right(self._starts, at) - 1
        file, reading, _ = self.files[number]
        index, turn = self._index[at], self._turn[at]
        row = Row(None, self._line[at], self._offset[at], self._length[at], None if index < 0 else index)
        try:
            value = read_row(self._descriptor(number), row.offset, row.length)
            value = file.columns.apply(value) if file.columns is not None else value
            raw = next((raw for raw in read_formats(value, reading.root) if raw.turn == turn), None)
            if raw is None:
                raise ValueError(f"there is no answer {turn}")
            source, uid = place(file, row, turn, raw.turns)
            headers = dict(zip(image_paths(raw, reading.root), self.headers(at), strict=True))
            record = make_record(raw, source, uid, replace(reading, headers=headers))
        except MALFORMED as error:
            raise ValueError(f"data: {file.name}:{row.place} is no longer what the scan read: {error}") from None
        return self._renamed(record, at)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Records)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"} | {"_open": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def _renamed(self, record: Record, at: int) -> Record:
        if at not in self._again:
            return record
        return Record(**(record.__dict__ | {"uid": f"{record.uid}@{self._again[at]}"}))

    def _descriptor(self, number: int) -> int:
        with self._lock:
            if number not in self._open:
                file, _, state = self.files[number]
                if _state(file.path) != state:
                    raise ValueError("the file has changed")
                self._open[number] = os.open(file.path, os.O_RDONLY)
            return self._open[number]


def place(file: DataFile, row: Row, turn: int, turns: int) -> tuple[str, str]:
    """(source, default uid) of a record: file and line, and the number of the answer where there are several."""
    answer = f"#{turn}" if turns > 1 else ""
    return f"{file.name}:{row.place}{answer}", f"{Path(file.name).stem}:{row.place}"


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns
