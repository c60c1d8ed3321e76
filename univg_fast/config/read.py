"""What was given: values from a YAML file and from the command line, each with the place where it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from univg_fast.config.table import LEAVES, SECTIONS, children, is_mapping, nearest, unknown

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


class ConfigError(ValueError):
    """A configuration that cannot be used. The message is complete: print it without a traceback."""


@dataclass(frozen=True)
class Given:
    """A value from outside. `where` is "file.yaml:12" or the argument as typed."""

    value: Any
    where: str


def recipe_names() -> list[str]:
    """Names that `--config` takes besides a file."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(source: str) -> Path:
    """The file that `--config SOURCE` means; a file wins over a recipe of that name. Raises ConfigError."""
    names = recipe_names()
    if Path(source).is_file():
        return Path(source)
    if source in names:
        return RECIPES / f"{source}.yaml"
    problem = f"no such file and no such recipe; recipes: {', '.join(names)}{nearest(source, names)}"
    raise ConfigError(f"--config {source}: {problem}")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-6 as a number (YAML 1.1 wants 1.0e-6)."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Given]:
    """Every leaf of the file under its dotted key; a section that is null or empty is given as itself."""
    given: dict[str, Given] = {}
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is not None:
            _walk(loader, root, "", path, given)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    return given


def _walk(loader: _Loader, node: yaml.Node, prefix: str, path: Path, given: dict[str, Given]) -> None:
    if not isinstance(node, yaml.MappingNode):
        where, got = f"{path}:{node.start_mark.line + 1}", loader.construct_object(node, deep=True)
        raise ConfigError(f"{where}: {prefix[:-1] or 'the file'}: expected a mapping of keys, got {got!r}")
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key, where = f"{prefix}{key_node.value}", f"{path}:{key_node.start_mark.line + 1}"
        if key in seen:
            raise ConfigError(f"{where}: {key} stands twice in this mapping")
        seen.add(key)
        if key in LEAVES:
            given[key] = Given(loader.construct_object(value_node, deep=True), where)
        elif key in SECTIONS:
            null = isinstance(value_node, yaml.ScalarNode) and loader.construct_object(value_node) is None
            given[key] = Given(None if null else {}, where)
            if not null:
                _walk(loader, value_node, key + ".", path, given)
        else:
            raise ConfigError(f"{where}: {unknown(key)}")


def split_arguments(argv: Sequence[str]) -> tuple[str | None, list[tuple[str, str]]]:
    """The value of --config, and (key, text) of every `--key=text` or `--key text`."""
    source, overrides, rest = None, [], list(argv)
    while rest:
        argument = rest.pop(0)
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key:
            raise ConfigError(f"argument {argument!r}: expected --config NAME or --section.key=value")
        if not equals:
            if not rest:
                known = key in LEAVES or key == "config"
                problem = f"expected a value, {argument}=…" if known else unknown(key)
                raise ConfigError(f"argument {argument}: {problem}")
            text = rest.pop(0)
        if key == "config":
            source = text
        else:
            overrides.append((key, text))
    return source, overrides


def override(key: str, text: str, given: dict[str, Given]) -> None:
    """Lay one argument over `given`: a leaf, or one entry of a mapping leaf (--rewards.terms.iou=2)."""
    where = f"argument --{key}={text}"
    parts = key.split(".")
    parents = [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
    leaf = next((parent for parent in parents if parent in LEAVES and is_mapping(LEAVES[parent].kind)), None)
    if key in LEAVES:
        given[key] = Given(text, where)
    elif key in SECTIONS:
        if text.strip() not in ("{}", "null"):
            raise ConfigError(f"{where}: {key} is a section; set its keys one by one: {children(key)}")
        for inside in [other for other in given if other.startswith(key + ".")]:
            del given[inside]  # what the YAML set there goes with it
        given[key] = Given({} if text.strip() == "{}" else None, where)
    elif leaf is not None:
        held = given[leaf].value if leaf in given else LEAVES[leaf].default
        inner = merged = deepcopy(held) if isinstance(held, dict) else {}
        *path, name = key.removeprefix(leaf + ".").split(".")
        for part in path:
            inner = inner.setdefault(part, {})
        inner[name] = yaml.load(text, _Loader)
        given[leaf] = Given(merged, where)
    else:
        raise ConfigError(f"{where}: {unknown(key)}{nearest(key, ('config',))}")
