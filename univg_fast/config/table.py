"""The schema as a flat table of dotted keys, and the words of the error messages about it."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from univg_fast.config.schema import Config


@dataclass(frozen=True)
class Leaf:
    """One key that takes a value. `help` is the comment beside the field in schema.py."""

    kind: Any
    default: Any
    help: str


def section_of(kind: Any) -> type | None:
    """The dataclass that a type annotation means (also where null is allowed); None for a plain value."""
    options = typing.get_args(kind) if allows_null(kind) else (kind,)
    return next((option for option in options if is_dataclass(option)), None)  # type: ignore[return-value]


def allows_null(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def is_mapping(kind: Any) -> bool:
    """Whether entries of this leaf may be set one by one (--rewards.terms.iou=2)."""
    return dict in [typing.get_origin(option) for option in (kind, *typing.get_args(kind))]


def _leaves(cls: type = Config, prefix: str = "") -> dict[str, Leaf]:
    hints = typing.get_type_hints(cls)
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        comments.update(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(base), re.MULTILINE))
    table, made = dict[str, Leaf](), cls()
    for item in fields(cls):
        key, section = prefix + item.name, section_of(hints[item.name])
        if section is not None:
            table.update(_leaves(section, key + "."))
        else:
            table[key] = Leaf(hints[item.name], getattr(made, item.name), comments.get(item.name, ""))
    return table


LEAVES = _leaves()
SECTIONS = {key.rpartition(".")[0] for key in LEAVES} - {""}


def children(section: str) -> str:
    """The keys right below a section, as a list to read."""
    names = [key for key in (*LEAVES, *sorted(SECTIONS)) if key.rpartition(".")[0] == section]
    return ", ".join(name.rpartition(".")[2] for name in names)


def unknown(key: str) -> str:
    """What to say about a key that is not in the table."""
    parent, _, name = key.rpartition(".")
    known = [*LEAVES, *SECTIONS]
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    best = [siblings[x] for x in get_close_matches(name, siblings, 1, 0.6)]
    best = best or [k for k in LEAVES if k.rpartition(".")[2] == name]  # the right name, elsewhere
    best = best or get_close_matches(key, [k for k in known if k.count(".") == key.count(".")], 1, 0.7)
    if best:
        return f"unknown key {key!r}; did you mean {best[0]!r}?"
    return f"unknown key {key!r}; {parent or 'the top level'} has: {children(parent)}"


def nearest(word: str, known: Sequence[str]) -> str:
    """'; did you mean …?', or nothing."""
    best = get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {best[0]!r}?" if best else ""


def type_name(kind: Any) -> str:
    """A type as a person says it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(x) for x in arguments)
    if origin is types.UnionType or type(None) in arguments:
        return " or ".join("null" if x is type(None) else type_name(x) for x in arguments)
    if origin is tuple and typing.get_origin(arguments[0]) is typing.Literal:
        return f"a list from {', '.join(typing.get_args(arguments[0]))}"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(type_name(x) for x in arguments)}"
    if origin is tuple:
        return f"a list of {type_name(arguments[0])}"
    if origin is dict:
        return f"a mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    words = {int: "an int", float: "a float", bool: "true or false", str: "a string", Any: "anything"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
