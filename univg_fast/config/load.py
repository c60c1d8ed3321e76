"""From a command line to a `Config`: read what was given, judge the types, build, name the culprit.

jsonargparse judges the types and prints `--help`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import typing
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import jsonargparse
import yaml

from univg_fast.config.changes import FREE, flat, is_one_of
from univg_fast.config.read import (
    ConfigError,
    Given,
    find_recipe,
    override,
    read_yaml,
    recipe_names,
    split_arguments,
)
from univg_fast.config.schema import Config
from univg_fast.config.table import LEAVES, SECTIONS, allows_null, nearest, section_of, type_name


def load_config(argv: Sequence[str] | None = None) -> Config:
    """Read `--config NAME_OR_FILE` and `--section.key=value …` (default: sys.argv). Raises ConfigError.

    Precedence: command line, YAML, defaults. `--help` prints every key and exits.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" in argv or "-h" in argv:
        _parser().parse_args(["--help"])
    source, overrides = split_arguments(argv)
    given = read_yaml(find_recipe(source)) if source is not None else {}
    for key, text in overrides:
        override(key, text, given)
    try:
        return _build(Config, "", _typed(given))
    except ValueError as error:  # a value out of bounds; its message begins with the key
        key = str(error).partition(":")[0]
        raise ConfigError(f"{given[key].where}: {error}" if key in given else str(error)) from None


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML; `load_config(["--config", file])` gives an equal object."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    return yaml.safe_dump(plain(asdict(config)), sort_keys=False, allow_unicode=True, width=110)


def config_hash(config: Config) -> str:
    """Of what decides a run's numbers: all but the folder, resuming, stopping, saving, logging, faults and memory."""
    values = {key: value for key, value in flat(asdict(config)).items() if not is_one_of(key, FREE)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False,
        prog="univg_fast.train",
        usage="torchrun -m univg_fast.train --config NAME_OR_FILE [--section.key=value ...]",
        description="A key given here wins over the YAML; a key given nowhere has the default shown.",
    )
    parser.add_argument("--config", help=f"a YAML file, or a recipe: {', '.join(recipe_names())}")
    for key, leaf in LEAVES.items():
        parser.add_argument(f"--{key}", type=leaf.kind, default=leaf.default, help=leaf.help.replace("%", "%%"))
    return parser


def _typed(given: dict[str, Given]) -> dict[str, Any]:
    """Every given value as its declared type. After a failure each key is tried alone, for the culprit."""
    parser = _parser()
    leaves = {key: item for key, item in given.items() if key in LEAVES}
    for key, item in leaves.items():
        if item.value is None and not allows_null(LEAVES[key].kind):  # jsonargparse lets null pass everywhere
            raise ConfigError(_wrong(key, item))
    try:
        parsed = _parse(parser, leaves)
    except ArgumentError:
        for key, item in leaves.items():
            try:
                _parse(parser, {key: item})
            except ArgumentError:
                raise ConfigError(_wrong(key, item)) from None
        raise
    return {k: parsed[k] for k in leaves} | {k: item.value for k, item in given.items() if k in SECTIONS}


def _parse(parser: jsonargparse.ArgumentParser, leaves: dict[str, Given]) -> Any:
    nested: dict[str, Any] = {}
    for key, item in leaves.items():
        *path, name = key.split(".")
        section = nested
        for part in path:
            section = section.setdefault(part, {})
        section[name] = item.value
    return parser.parse_object(nested)


def _build(cls: type, prefix: str, values: dict[str, Any]) -> Any:
    """The dataclass from its dotted values. A section that may be null is built only where it was given."""
    arguments: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        key, section = prefix + item.name, section_of(hints[item.name])
        given = values.get(key) is not None or any(other.startswith(key + ".") for other in values)
        if section is None and key in values:
            arguments[item.name] = values[key]
        elif section is not None and (given or not allows_null(hints[item.name])):
            arguments[item.name] = _build(section, key + ".", values)
    return cls(**arguments)


def _wrong(key: str, item: Given) -> str:
    kind, value = LEAVES[key].kind, item.value
    message = f"{item.where}: {key}: expected {type_name(kind)}, got {'null' if value is None else repr(value)}"
    if typing.get_origin(kind) is typing.Literal and isinstance(value, str):
        message += nearest(value, typing.get_args(kind))
    if typing.get_origin(kind) is tuple and isinstance(value, str) and not value.startswith("["):
        message += f"; a list of one is written [{value}]"
    return message
