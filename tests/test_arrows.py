"""The import arrows of the whole house: data flows down one road, and no module imports from further down it.

`univg_kernels` being a leaf has its own test (tests/ops/test_library.py).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAINER = ROOT / "univg_fast"
KERNELS = ROOT / "kernels" / "univg_kernels"

# Bottom to top. A room imports from itself and from layers below its own. The longest name that fits is a module's
# room, so that a single module may lie lower than the rest of its folder.
LAYERS = (
    ("leaving",),
    ("structs", "distributed", "files", "integrations"),
    ("rewards", "packing"),
    ("data", "model"),
    ("config", "loss", "rollout"),
    ("evaluate",),
    ("report",),
    ("train",),
    ("check", "cot", "predict"),
)
# Heavy or optional packages, and the only rooms that know them.
ONLY_IN = {
    "deepspeed": {"train", "distributed"},
    "jsonargparse": {"config"},
    "matplotlib": {"report"},
    "jinja2": {"report", "check"},
    "pyarrow": {"data"},
    "gradio": {"predict"},
    "wandb": {"train"},
    "trackio": {"train"},
    "trl": {"integrations"},
}


@dataclass(frozen=True)
class Import:
    """One import statement's target, a full dotted name. `at_start`: it runs when the module is imported."""

    module: str
    target: str
    where: str
    at_start: bool


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file of every module below `package`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> Iterator[Import]:
    """Every import statement below `package`; `from a import b` means a.b where that is a module."""
    names = modules(package)
    for module, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        late = {id(node) for outer in ast.walk(tree) if _is_late(outer) for node in ast.walk(outer)}
        here = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(tree):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = here.split(".")[: len(here.split(".")) - node.level + 1] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                targets = [f"{origin}.{a.name}" if f"{origin}.{a.name}" in names else origin for a in node.names]
            for target in targets:
                yield Import(module, target, f"{path.relative_to(package.parent)}:{node.lineno}", id(node) not in late)


def _is_late(node: ast.AST) -> bool:
    """A function's body, and what only a type checker reads."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def room_of(module: str) -> str | None:
    """The entry of LAYERS that a module of the trainer lies in; None for univg_fast itself."""
    parts = module.split(".")[1:]
    known = {room for layer in LAYERS for room in layer}
    fits = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in fits if name in known), None)


def wrong_arrows(package: Path) -> list[str]:
    height = {room: i for i, layer in enumerate(LAYERS) for room in layer}
    wrong = []
    for item in imports(package):
        mine, other = room_of(item.module), room_of(item.target)
        if mine is None or other is None or not item.target.startswith(package.name + "."):
            continue
        if mine != other and height[other] >= height[mine]:
            wrong.append(f"{item.where}: {mine} imports {item.target}, which lies no lower")
    return wrong


def import_cycle(package: Path) -> list[str] | None:
    """Modules that cannot each be imported first, because at start they need one another."""
    names = modules(package)
    graph: dict[str, set[str]] = {name: set() for name in names}
    for item in imports(package):
        if item.at_start:
            parts = item.target.split(".")
            loaded = {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & names.keys()  # parents come first
            running = {item.module, *(n for n in names if item.module.startswith(n + "."))}
            graph[item.module] |= loaded - running
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_nothing_imports_up() -> None:
    assert wrong_arrows(TRAINER) == []


def test_every_room_has_its_place_and_every_place_its_room() -> None:
    homeless = [name for name in modules(TRAINER) if room_of(name) is None and name != "univg_fast"]
    assert homeless == [], "a new room needs an entry in LAYERS, and in CONTRIBUTING.md"
    lived_in = {room_of(name) for name in modules(TRAINER)}
    assert {room for layer in LAYERS for room in layer} <= lived_in


def test_contributing_shows_these_layers() -> None:
    """In the block named "layers", top to bottom; rooms of a line are separated by " · ", words follow two spaces."""
    (picture,) = re.findall(r"^```layers\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    told = [set(re.split(r" {2,}", line)[0].split(" · ")) for line in picture.splitlines()]
    assert told == [set(layer) for layer in reversed(LAYERS)]


@pytest.mark.parametrize("package", [TRAINER, KERNELS], ids=lambda p: p.name)
def test_any_module_can_be_imported_first(package: Path) -> None:
    assert import_cycle(package) is None


def test_the_trainer_uses_public_names_of_the_kernels_and_knows_no_other_package_of_the_repository() -> None:
    for item in imports(TRAINER):
        root, *rest = item.target.split(".")
        assert not (root == "univg_kernels" and any(part.startswith("_") for part in rest)), item.where
        assert root not in {"bench", "tests", "kernels"}, item.where


@pytest.mark.parametrize("foreign", ONLY_IN)
def test_heavy_packages_stay_in_their_room(foreign: str) -> None:
    users = {room_of(item.module) for item in imports(TRAINER) if item.target.split(".")[0] == foreign}
    assert users <= ONLY_IN[foreign]
    assert users, f"nobody imports {foreign} any more: take it off the list"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small univg_fast with one arrow up, one hidden in a function, and a cycle through a package's __init__."""
    package = tmp_path / "univg_fast"
    files = {
        "__init__.py": "",
        "model/__init__.py": "from .packed import PackedModel\n",
        "model/packed.py": "from univg_fast.packing.rows import Row\nPackedModel = Row\n",
        "model/families.py": "",
        "packing/rows.py": "from univg_fast.model.families import Family\nRow = 0\n",
        "rewards/parse.py": "def late():\n    from univg_fast import train\n",
        "evaluate/run.py": "from univg_fast import distributed\n",
        "train/__init__.py": "",
        "distributed.py": "import torch\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def test_the_checks_see_what_they_should(house: Path) -> None:
    places = [line.split(":")[0] for line in wrong_arrows(house)]
    assert places == ["univg_fast/packing/rows.py", "univg_fast/rewards/parse.py"]
    cycle = import_cycle(house)
    assert cycle is not None and {"univg_fast.packing.rows", "univg_fast.model"} <= set(cycle)
