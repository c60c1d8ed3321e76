"""The pages of the documentation as text: fenced blocks, commands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = tuple(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))
DOCS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. `place` is "FILE:line" of its fence."""

    place: str
    language: str
    text: str


def read_blocks() -> list[Block]:
    blocks = []
    for name in DOCS:
        content = (ROOT / name).read_text(encoding="utf-8")
        for found in FENCE.finditer(content):
            line = content.count("\n", 0, found.start()) + 1
            blocks.append(Block(f"{name}:{line}", found[1], found[2]))
    return blocks


BLOCKS = read_blocks()


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def snippets(section: str) -> list[str]:
    """The fenced blocks of a section of docs/dropins.md, which the hosts' own tests run."""
    page = (ROOT / "docs" / "dropins.md").read_text(encoding="utf-8")
    return [found[2] for found in FENCE.finditer(page.split(f"\n## {section}\n")[1].split("\n## ")[0])]


def commands() -> list[tuple[str, str]]:
    """(place, command) of every line of the shell blocks; continued lines joined, comments off."""
    found = []
    for block in blocks("bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = " ".join(re.sub(r"(^|\s)#.*$", "", line).split())
            if command:
                found.append((block.place, command))
    return found


def in_text_commands() -> list[tuple[str, str]]:
    """Commands that stand in a sentence: `make …` and `python -m …`."""
    found = []
    for name in DOCS:
        content = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
        found += [(name, command) for command in re.findall(r"`((?:make |python -m )[^`]+)`", content)]
    return found


# What a new user types after `make demo`, in README and quick start: all that needs one process and no model of theirs.
# tests/test_docs_first_hour.py runs it.
DESK = [
    (place, command)
    for place, command in commands()
    if place.startswith(("README.md", "docs/quickstart.md"))
    and re.search(r"runs/(demo|mine)/|mine\.yaml", command)
    and not re.search(r"--serve|--nproc_per_node [28]", command)
]
