"""README and docs keep their word: commands run, snippets and examples are read, figures are those of result files."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
from os.path import relpath
from pathlib import Path

import pytest
from pages import BLOCKS, DESK, DOCS, FENCE, README, ROOT, Block, blocks, commands, in_text_commands
from PIL import Image

from univg_fast.config import load_config, recipe_names
from univg_fast.config.table import LEAVES
from univg_fast.data.scan import scan
from univg_fast.train.console import _WORDS

# What is not checked here by itself, and where it is.
ELSEWHERE = {
    "pip install torch scikit-build-core cmake ninja": "names of pyproject.toml's build requirements",
    'pip install --no-build-isolation ".[train]"': "tests/ops/test_wheel.py, without the extra",
    "source .venv/bin/activate": "a part of venv",
    "python -m lmms_eval --include_path univg_fast/evaluate/lmms_eval --tasks mig_bench": "test_lmms_eval.py",
    "python -m univg_kernels.document docs/losses.md": "tests/ops/test_losses_doc.py",
}
FROM_A_RUN = "runs/"  # paths that a run makes


def test_no_block_escapes_the_checks() -> None:
    assert {block.language for block in BLOCKS} == {"bash", "python", "json", "layers", "yaml", ""}
    # layers: tests/test_arrows.py; without a language: formulas, lines that benchmarks.md was made by, drop-ins (below)
    assert len(commands()) > 10 and len(in_text_commands()) > 2


@pytest.mark.parametrize(("place", "command"), [*commands(), *in_text_commands()])
def test_a_command_is_one_that_works(place: str, command: str) -> None:
    words = shlex.split(command.removeprefix(".venv/bin/"))
    if words[0] == "make":
        dry_run(words[1:])
    elif (place, command) in DESK:
        pass  # tests/test_docs_first_hour.py runs it
    elif "univg_fast.train" in words:  # the command itself runs in tests/test_bad_input.py and tests/invariants
        check_training(words)
    elif "pytest" in words:
        check_pytest(words[words.index("pytest") + 1 :])
    elif words[:2] == ["python", "-m"] and words[2].startswith(("bench.", "univg_fast.report")):
        if words[2] == "bench.trl_step":
            pytest.importorskip("trl", reason="of the extra [bench]")
        help_knows(words)  # run in tests/bench; its function in tests/report/test_page.py
    elif words[:3] == ["python", "-m", "univg_fast.data"]:  # run in tests/data
        help_knows(words, words[3])
    elif "univg_fast.evaluate" in words or "univg_fast.predict" in words:  # run in tests/evaluate
        module = next(word for word in words if word in ("univg_fast.evaluate", "univg_fast.predict"))
        given, keys = (
            importlib.import_module(f"{module}.__main__").parser().parse_known_args(words[words.index(module) + 1 :])
        )
        load_config([*(["--config", given.config] if given.config else []), *keys])
    elif words[:2] == ["python", "-m"] and words[2] in ("univg_fast.check", "univg_fast.cot"):  # run in tests
        given, keys = importlib.import_module(f"{words[2]}.__main__").parser().parse_known_args(words[3:])
        load_config([*(["--config", given.config] if given.config else []), *keys])
    else:
        assert command in ELSEWHERE, f"{place}: test it here, or say in ELSEWHERE what does"


def dry_run(arguments: list[str]) -> None:
    """`make -n`: the target is there, so are the scripts that it would run, and the options reach what reads them."""
    done = subprocess.run(["make", "--dry-run", "--always-make", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ".venv" in done.stdout
    assert all((ROOT / script).is_file() for script in re.findall(r"\S+\.py\b", done.stdout))
    options = shlex.split(next((a.removeprefix("ARGS=") for a in arguments if a.startswith("ARGS=")), ""))
    if arguments[0] == "demo":
        load_config(["--config", "demo", *options])
    if arguments[0] in ("bench", "gpu"):
        (module,) = set(re.findall(r"-m (bench\.\w+)", done.stdout))
        known = help_of(module)
        assert all(option in known for option in options if option.startswith("--"))


def check_training(words: list[str]) -> None:
    """Keys, values and recipe are accepted, before or without a run."""
    arguments = words[words.index("univg_fast.train") + 1 :]
    if arguments == ["--help"]:  # tests/train/test_config.py runs it
        return
    load_config(arguments)
    if "--config" not in arguments:  # of a run that knows its own: tests/train/test_export.py
        assert words[0] == "python" and any(word.startswith("--model.export=") for word in arguments)
        return
    assert arguments[arguments.index("--config") + 1] in recipe_names()
    assert words[0] == "torchrun" and "--nproc_per_node" in words


@functools.cache
def help_of(module: str, *verb: str) -> str:
    """What `python -m MODULE [VERB] --help` prints; asked once, as imports take seconds."""
    done = subprocess.run([sys.executable, "-m", module, *verb, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def help_knows(words: list[str], *verb: str) -> None:
    """`python -m MODULE [VERB] --help` works and names the options."""
    known = help_of(words[2], *verb)
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert all(option in known for option in options), f"{options} of: {known}"


def check_pytest(arguments: list[str]) -> None:
    for argument in arguments:
        path, _, name = argument.partition("::")
        assert (ROOT / path).exists()
        assert not name or f"def {name}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.place)
def test_a_snippet_runs(block: Block) -> None:
    done = subprocess.run([sys.executable, "-c", block.text], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "print(" not in block.text or "num_tokens" in done.stdout


def test_snippets_of_drop_ins_are_run_by_their_hosts_tests() -> None:
    page = (ROOT / "docs" / "dropins.md").read_text(encoding="utf-8")
    sections = [part.partition("\n")[0] for part in page.split("\n## ")[1:] if FENCE.search(part)]
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/integrations").glob("test_*.py"))
    assert len(sections) > 6 and [name for name in sections if f'snippets("{name}")' not in tests] == []


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_a_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    (tmp_path / "of_the_page.yaml").write_text(block.text)
    load_config(["--config", str(tmp_path / "of_the_page.yaml")])


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.place)
def test_an_example_record_is_read(block: Block, tmp_path: Path) -> None:
    for name in ("shelf.jpg", "table.jpg"):
        Image.new("RGB", (1000, 1000)).save(tmp_path / name)
    row = json.loads(block.text)
    (tmp_path / "example.jsonl").write_text(json.dumps(row) + "\n")
    records, report = scan([str(tmp_path / "example.jsonl")])
    assert not report.bad and not report.warnings
    (record,) = records
    assert record.box == (120, 44, 388, 510) and len(record.images) == 2 and record.task == "group_grounding"
    assert (record.response is None) == ("conversations" not in row)


def test_keys_that_the_docs_name_exist() -> None:
    """A `section.key` in backticks, with a value or without; a whole section with `.*`."""
    sections = "|".join({key.partition(".")[0] for key in LEAVES if "." in key})
    unknown = set()
    for name in DOCS:
        content = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
        for found in re.findall(rf"`(?:--)?((?:{sections})(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`", content):
            open_ended = ("deepspeed.config.", "rewards.terms.", "grpo.loss_options.", "model.generate")  # a method
            if not found.startswith(open_ended) and not any(
                key == found or key.startswith(f"{found}.") for key in LEAVES
            ):
                unknown.add((name, found))
    assert unknown == set()


def test_anchors_exist() -> None:
    """A link to a heading: in GitHub's spelling of it."""
    missing = []
    for name in DOCS:
        content = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", content):
            if "://" in target:
                continue
            page = (ROOT / name).parent / target if target else ROOT / name
            heads = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
            if anchor not in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}:
                missing.append((name, target, anchor))
    assert missing == []


def named_paths() -> list[tuple[str, str]]:
    """Paths in links and in `code` that look like files or folders of the repository."""
    found = set()
    top = "|".join(re.escape(p.name) for p in ROOT.iterdir() if not p.name.startswith(".") and p.name != "runs")
    for name in DOCS:
        content = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
        linked = re.findall(r'(?:src|srcset)="([^"]+)"', content)
        linked += [target for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", content) if "://" not in target]
        coded = re.findall(rf"`((?:{top})/[\w./:]*)`", content)
        beside = [relpath((ROOT / name).parent / target, ROOT) for target in linked]
        found |= {(name, path) for path in (*beside, *coded) if "NAME" not in path}
    return sorted(found)


@pytest.mark.parametrize(("name", "path"), named_paths())
def test_a_named_path_exists(name: str, path: str) -> None:
    path, _, test = path.partition("::")
    assert (ROOT / path).exists(), f"{name} names {path}"
    assert not test or f"def {test}(" in (ROOT / path).read_text()


def test_the_words_of_the_console_are_explained() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text().partition("## A line of the console")[2].partition("## ")[0]
    for metric, short, _ in _WORDS:
        assert (f"`{short}`" if metric == short else f"`{short}` (`{metric}`)") in page


def test_named_recipes_exist() -> None:
    """And every recipe is named."""
    text = "".join((ROOT / name).read_text() for name in DOCS)
    assert set(re.findall(r"--config (\w+)\b(?!\.yaml)", text)) <= set(recipe_names())
    assert all(f"`{name}`" in text for name in recipe_names())


def test_the_changelog_begins_with_the_version_of_the_project() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    entry = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version is not None and entry is not None and entry[1] == version[1]


def test_readme_names_the_keys_that_nothing_reads() -> None:
    """Those and no others: outside of univg_fast/config every other key's name is read from some object."""
    sources = [p for p in (ROOT / "univg_fast").rglob("*.py") if "config" not in p.relative_to(ROOT).parts]
    sources.append(ROOT / "univg_fast" / "config" / "losses.py")  # makes what the losses read
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    schema = ast.walk(ast.parse((ROOT / "univg_fast" / "config" / "schema.py").read_text(encoding="utf-8")))
    properties = [node for node in schema if isinstance(node, ast.FunctionDef) and node.name in read]
    read |= {node.attr for made in properties for node in ast.walk(made) if isinstance(node, ast.Attribute)}
    composed = ("data.builtin.", "model.lora.")  # some are read by a composed name
    unread = {key for key in LEAVES if not key.startswith(composed) and key.rpartition(".")[2] not in read}
    admitted = re.search(r"^- Keys that change nothing yet: (.*)$", README, re.MULTILINE)
    assert unread == (set(re.findall(r"`([\w.]+)`", admitted[1])) if admitted else set())
