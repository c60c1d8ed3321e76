"""LLaMA-Factory's dataset_info.json: which files it names, and how it names their columns.

{"my_data": {"file_name": "a.json", "formatting": "sharegpt", "columns": {"messages": "conversations", "images":
 "images"}, "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}}}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAREGPT = {"messages": "conversations", "images": "images"}
ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "images": "images"}
TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"}


@dataclass(frozen=True)
class Columns:
    """How a file names what we know. `keys`: (the file's, ours); `tags`: the values of TAGS in its order."""

    keys: tuple[tuple[str, str], ...] = ()
    tags: tuple[str, ...] = tuple(TAGS.values())

    def apply(self, row: Any) -> Any:
        """The row in our words; what is not as the columns say is left to the reader to refuse."""
        if not isinstance(row, dict):
            return row
        names = dict(self.keys)
        row = {names.get(key, key): value for key, value in row.items()}
        turns = row.get("conversations")
        if self.tags == tuple(TAGS.values()) or not isinstance(turns, list):
            return row
        return row | {"conversations": [self._turn(turn) for turn in turns]}

    def _turn(self, turn: Any) -> Any:
        role, content, user, model, system = self.tags
        if not isinstance(turn, dict):
            return turn
        said = turn.get(role)
        speaker = {user: "human", model: "gpt", system: "system"}.get(said, said) if isinstance(said, str) else said
        return {"from": speaker, "value": turn.get(content)}


def datasets_of(info: dict[str, Any], path: Path, chosen: Sequence[str]) -> Iterator[tuple[Path, Columns]]:
    """(file, columns) of the data sets, or of those `chosen`; ValueError for one that is unknown or not on disk."""
    unknown = [name for name in chosen if name not in info]
    if unknown:
        raise ValueError(f"data: {path}: expected some of {', '.join(info)}, got {', '.join(unknown)}")
    for name in chosen or info:
        entry = info[name]
        if not isinstance(entry.get("file_name"), str):
            raise ValueError(
                f"data: {path}: {name}: expected file_name, a file on disk; hubs and scripts are not asked"
            )
        file = path.parent / entry["file_name"]
        if not file.is_file():
            raise ValueError(f"data: {path}: {name}: no such file: {file}")
        yield file, _columns(entry, f"{path}: {name}")


def _columns(entry: dict[str, Any], where: str) -> Columns:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt"):
        raise ValueError(f"data: {where}: formatting: expected alpaca or sharegpt, got {formatting!r}")
    ours = SHAREGPT if formatting == "sharegpt" else ALPACA
    named, tags = entry.get("columns") or {}, TAGS | (entry.get("tags") or {})
    keys = tuple((str(named[key]), mine) for key, mine in ours.items() if key in named and named[key] != mine)
    return Columns(keys, tuple(str(tags[tag]) for tag in TAGS))
