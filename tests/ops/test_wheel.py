"""A wheel built from this tree works in a fresh environment, from another folder, with and without the C++
ops."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build_and_install(folder: Path, *options: str) -> tuple[Path, Path]:
    """(the wheel, the interpreter of a fresh environment that holds it)."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = (f"-Cbuild-dir={folder / 'build'}", *options)
    run(*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", "-w", folder, *options, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    # torch is large: lend the environment those of this one, behind its own packages. Editable installs do
    # not
    # come along, because .pth files in a lent folder are not read.
    (site / "lent.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    python = folder / "env" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return wheel, python


CHECK_BOTH = """
import importlib.resources, sys, torch, univg_fast, univg_kernels as uk
for package in (univg_fast, uk):
    assert package.__file__.startswith(sys.prefix), package.__file__
recipes = [f.name for f in importlib.resources.files("univg_fast").joinpath("recipes").iterdir()]
assert "demo.yaml" in recipes, recipes
from univg_kernels.document import document
assert "gmpo" in document()
z, ids = torch.randn(3, 9), torch.tensor([0, 4, 8])
"""
CHECK_CPP = """
from univg_kernels import _library
assert _library.PATH.startswith(sys.prefix), _library.PATH
got, want = (uk.selective_logprob(z, ids, backend=b) for b in ("cpp", "reference"))
torch.testing.assert_close(got, want)
print(uk.resolve("cpu"))
"""
CHECK_NO_CPP = """
assert uk.resolve("cpu") == "reference"
uk.selective_logprob(z, ids)
try:
    uk.selective_logprob(z, ids, backend="cpp")
except ValueError as error:
    print(error)
"""


def test_wheel(tmp_path: Path) -> None:
    wheel, python = build_and_install(tmp_path)
    assert "-py3-none-" in wheel.name, "one wheel for every Python 3"
    assert run(python, "-I", "-c", CHECK_BOTH + CHECK_CPP, cwd=tmp_path).strip() == "cpp"


def test_wheel_without_cpp(tmp_path: Path) -> None:
    """No compiler needed; the missing face says what to run. The lent folder must not lend its library
    either."""
    _, python = build_and_install(tmp_path, "-Ccmake.define.UNIVG_BUILD_CPP=OFF")
    assert "pip install --no-build-isolation ." in run(python, "-I", "-c", CHECK_BOTH + CHECK_NO_CPP, cwd=tmp_path)
