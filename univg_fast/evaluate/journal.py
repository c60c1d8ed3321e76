"""Answers as they come, a line each, so that an evaluation that was killed goes on where it was.

Each rank appends to a file of its own, FOLDER/answers.RANK.jsonl; all ranks read all of them, so that another number of
ranks can go on. The first line holds the settings that answers depend on; a line without its end is cut off. What could
not be asked, as its image was not there, is no answer: it is tried again, and a file of nothing else begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from univg_fast.files import lock

from .items import Item
from .predictions import Prediction


class Journal:
    """The answers in `folder`. ValueError where they were given with other settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, dict(settings)
        self.answers: dict[str, Prediction] = {}
        self._useful: set[Path] = set()  # files that hold an answer
        for path in sorted(folder.glob("answers.*.jsonl")):
            self._read(path)

    def open(self, rank: int) -> None:
        """Append to this rank's file from now on. ValueError where another process does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"answers.{rank}.jsonl"
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        if not lock(self._file):
            raise ValueError(f"--out: {path}: another process is evaluating into this folder")
        content = self._file.read()
        whole = content.rfind(b"\n") + 1 if path in self._useful else 0
        self._file.seek(whole)
        self._file.truncate()
        if whole == 0:
            self._write({"settings": self.settings})

    def add(self, batch: Iterable[tuple[Item, Prediction]]) -> None:
        for item, said in batch:
            self._write({"uid": item.uid, "text": said.text, "tokens": said.tokens, "error": said.error,
                         "sizes": said.sizes, "resized": said.resized})  # fmt: skip
            self.answers[item.uid] = said

    def close(self) -> None:
        self._file.close()

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")[:-1]  # the last piece has no end, or is empty
        settings, *entries = [json.loads(line) for line in lines] or [{}]
        answered = [entry for entry in entries if entry["error"] is None]
        if not answered:
            return
        self._check(path, settings["settings"])
        self._useful.add(path)
        for entry in answered:
            if "resized" not in entry:
                raise ValueError(
                    f'--out: {path} holds answers of an older form, their boxes rounded (they have no "resized"); '
                    "name another folder, or delete them"
                )
            sizes, resized = (tuple((width, height) for width, height in entry[key]) for key in ("sizes", "resized"))
            said = Prediction(entry["text"], None, entry["tokens"], None, sizes, resized=resized)
            self.answers[entry["uid"]] = said

    def _check(self, path: Path, before: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(self.settings))
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if changed:
            was = "; ".join(f"{key} was {before.get(key)!r}"[:200] for key in changed)
            raise ValueError(
                f"--out: {path} holds answers given with other settings ({was}); name another folder, or delete them"
            )

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(entry) + "\n").encode())
        self._file.flush()
