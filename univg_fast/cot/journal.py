"""What is done, line by line, so that a build that was killed goes on where it was.

Beside the output lies OUT.journal while a build is not finished: a line of settings, then one for each record that was
judged. A line without its end is cut off and done again. The output itself is written in one piece, in the records'
order, so it depends on neither the number of threads nor on any interruption.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from univg_fast.files import lock

NOT_DONE, NOTHING_KEPT = 0, -1


class Journal:
    """The state of one build of `number` records into `out`."""

    def __init__(self, out: Path, settings: dict[str, Any], number: int):
        self.out, self.settings = out, settings
        self.path = out.with_name(out.name + ".journal")
        self.summary_path = out.with_name(out.name + ".summary.json")
        self.places = array("q", [NOT_DONE]) * number  # byte offset of a kept record's line
        self.removed: Counter[str] = Counter()
        self.kept = self.done = 0
        self._file: BinaryIO | None = None

    def finished(self) -> bool:
        """Whether `out` is there, complete and made with these settings. ValueError for an `out` of other settings."""
        if self.path.exists() or not self.out.exists():
            return False
        summary = json.loads(self.summary_path.read_text()) if self.summary_path.exists() else {}
        made = summary.get("settings")
        if made != self.settings:
            raise ValueError(f"--out: {self.out} is there, {_difference(made, self.settings)}; name another file")
        self.kept = summary["kept"]
        return True

    def open(self) -> None:
        """Read what is done and go on after it. ValueError where it was done with other settings, or is being done."""
        header = (json.dumps({"settings": self.settings}) + "\n").encode()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        if not lock(self._file):
            raise ValueError(f"{self.path}: another process is building {self.out}")
        end = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            entry = json.loads(line)
            if number == 0 and entry["settings"] != self.settings:
                raise ValueError(
                    f"{self.path}: an unfinished build, {_difference(entry['settings'], self.settings)}; "
                    "go on with its settings, name another --out, or delete that file"
                )
            if number > 0:
                self._count(entry, end)
            end += len(line)
        self._file.seek(end)
        self._file.truncate()
        if end == 0:  # a new one, or killed while the first line was written
            self._write(header)

    def is_done(self, index: int) -> bool:
        return self.places[index] != NOT_DONE

    def add(self, index: int, row: dict[str, Any] | None, removed: Counter[str]) -> None:
        """A record is judged: its row, or None, and how many candidates each filter removed."""
        assert self._file is not None
        entry = {"index": index, "removed": dict(removed), "row": row}
        at = self._file.tell()
        self._write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
        self._count(entry, at)

    def write(self, failed: int) -> None:
        """Write `out` and its summary. The journal goes, unless records failed, which are then tried again."""
        assert self._file is not None
        half = self.out.with_name(self.out.name + ".tmp")
        with half.open("wb") as out:
            for place in self.places:
                if place not in (NOT_DONE, NOTHING_KEPT):
                    self._file.seek(place)
                    row = json.loads(self._file.readline())["row"]
                    out.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        os.replace(half, self.out)
        told = {"kept": self.kept, "records": self.done, "failed": failed, "removed": dict(self.removed)}
        self.summary_path.write_text(json.dumps(told | {"settings": self.settings}, indent=1) + "\n")
        self._file.close()
        if not failed:
            self.path.unlink()

    def _count(self, entry: dict[str, Any], at: int) -> None:
        self.places[entry["index"]] = at if entry["row"] is not None else NOTHING_KEPT
        self.removed.update(entry["removed"])
        self.kept, self.done = self.kept + (entry["row"] is not None), self.done + 1

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        self._file.write(line)
        self._file.flush()


def _difference(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    if before is None:
        return "not made by this command"
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    return "made with other settings (" + "; ".join(f"{k} was {before.get(k)!r}" for k in changed)[:300] + ")"
