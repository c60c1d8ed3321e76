"""Functions of an installed codebase, compiled from its own files without the files' imports.

TRL, verl and ms-swift import Arrow, Ray or half of a serving stack long before their losses, which need torch alone. So
`make setup` puts the bare wheels into .venv/peers (never on sys.path: verl brings a top-level package `tests`), and
what a test calls is cut out of the source there, unchanged, and compiled among the names that it uses.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

PEERS = Path(sys.prefix) / "peers"


def need(wheel: str, version: str) -> None:
    """Skip the calling test module, unless the wheel lies where `make setup` puts it."""
    if not (PEERS / f"{wheel}-{version}.dist-info").is_dir():
        pytest.skip(f"{wheel} {version} is not in {PEERS}; `make setup` puts it there", allow_module_level=True)


@cache
def _parse(file: str) -> ast.Module:
    return ast.parse((PEERS / file).read_text())


def _compile(body: list[ast.stmt], file: str, names: dict[str, Any]) -> dict[str, Any]:
    module = ast.fix_missing_locations(ast.Module(body, []))
    space = {"torch": torch} | names
    # Annotations name what the imports would have brought: they stay text.
    exec(compile(module, str(PEERS / file), "exec", annotations.compiler_flag), space)
    return space


def _name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return getattr(node, "name", None)


def _pick(body: Iterable[ast.stmt], wanted: Iterable[str], file: str) -> list[ast.stmt]:
    wanted = set(wanted)
    found = [node for node in body if _name(node) in wanted]
    missing = wanted - {_name(node) for node in found}
    assert not missing, f"{file} has no {', '.join(sorted(missing))}"
    return found


def _plain(node: ast.stmt) -> ast.stmt:
    """Without the decorators that only register, time or deprecate; static methods and no_grad stay."""
    if isinstance(node, ast.FunctionDef):
        decorators = [d for d in node.decorator_list if ast.unparse(d) in ("staticmethod", "torch.no_grad()")]
        node = ast.FunctionDef(node.name, node.args, node.body, decorators, node.returns)
    return node


def functions(file: str, *wanted: str, **names: Any) -> dict[str, Any]:
    """Top-level functions, classes and constants of a file, by name."""
    return _compile([_plain(node) for node in _pick(_parse(file).body, wanted, file)], file, names)


def methods(file: str, owner: str, *wanted: str, **names: Any) -> type:
    """A class `owner` without bases that has these methods of the class in the file, and no other."""
    (whole,) = _pick(_parse(file).body, [owner], file)
    assert isinstance(whole, ast.ClassDef)
    part = ast.ClassDef(owner, [], [], [_plain(node) for node in _pick(whole.body, wanted, file)], [])
    return _compile([part], file, names)[owner]


def passage(file: str, owner: str, method: str, first: str, last: str, takes: str, gives: str, **names: Any) -> Any:
    """A function of `takes` that runs consecutive statements out of a long method, and returns the name `gives`.

    first, last: how the first and the last statement begin, as `ast.unparse` writes them.
    """
    (whole,) = _pick(_parse(file).body, [owner], file)
    assert isinstance(whole, ast.ClassDef)
    (function,) = _pick(whole.body, [method], file)
    for node in ast.walk(function):
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if not isinstance(block, list):
                continue
            starts = [i for i, s in enumerate(block) if ast.unparse(s).startswith(first)]
            if starts:
                stops = [i for i, s in enumerate(block) if ast.unparse(s).startswith(last) and i >= starts[0]]
                shell = ast.parse(f"def passage({takes}):\n    return {gives}").body[0]
                assert isinstance(shell, ast.FunctionDef) and stops, f"{file}: no {last!r} after {first!r}"
                shell.body = [*block[starts[0] : stops[0] + 1], *shell.body]
                return _compile([shell], file, names)["passage"]
    raise AssertionError(f"{file}: {owner}.{method} has no statement that begins with {first!r}")


def dataclass_defaults(file: str, owner: str) -> dict[str, Any]:
    """The fields of a dataclass whose default is a literal, plain or in `field(default=…)`."""
    (whole,) = _pick(_parse(file).body, [owner], file)
    assert isinstance(whole, ast.ClassDef)
    found = {}
    for node in whole.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            value = node.value
            if isinstance(value, ast.Call):
                value = next((k.value for k in value.keywords if k.arg == "default"), None)
            if isinstance(value, (ast.Constant, ast.UnaryOp)):
                found[node.target.id] = ast.literal_eval(value)
    return found
