"""docs/losses.md is what the code says today, and names nothing that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import univg_kernels as uk
from univg_kernels import document
from univg_kernels._rows import RowArguments
from univg_kernels.config import CHOICES

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    assert document.document() == TEXT, f"run: {document.COMMAND}"
    copy = tmp_path / "losses.md"
    printed = subprocess.run([sys.executable, "-m", "univg_kernels.document"], capture_output=True, check=True)
    subprocess.run([sys.executable, "-m", "univg_kernels.document", copy], check=True)
    assert printed.stdout.decode() == copy.read_text(encoding="utf-8") == TEXT
    wrong = subprocess.run([sys.executable, "-m", "univg_kernels.document", "-x"], capture_output=True, text=True)
    assert wrong.returncode != 0 and wrong.stderr.strip() == f"usage: {document.COMMAND}"


@pytest.mark.parametrize("kind", ["loss_type", "importance_sampling_level", "loss_aggregation", "kl_estimator"])
def test_every_choice_has_one_line(kind: str) -> None:
    start = TEXT.index(f"| `{kind}` |")
    lines = TEXT[start : TEXT.index("\n\n", start)].splitlines()[2:]
    assert sorted(line.split("`")[1] for line in lines) == sorted(CHOICES[kind])
    assert len({line.count(" | ") for line in lines}) == 1 and all("|  |" not in line for line in lines)


def test_every_metric_is_said() -> None:
    described = TEXT[TEXT.index("| metric | is |") :]
    named = re.findall(r"`(\w+)`", "".join(line.split(" | ")[0] for line in described.splitlines()[2:]))
    assert sorted(named) == sorted(uk.METRICS)


def test_every_name_in_it_exists() -> None:
    """What looks like a name is a setting, a row argument, one of their values, or a part of the page's formulas."""
    known = {f.name for f in fields(uk.GrpoConfig)} | set(RowArguments.__annotations__) | set(uk.__all__)
    known |= {value for values in CHOICES.values() for value in values} | set(uk.METRICS)
    formulas = {"n_i", "sum_t", "Σ_t", "Σ_j", "w_t", "e_t", "H_t", "u_t", "s_t", "u_j", "s_j", "phi_i", "gate_t"}
    formulas |= {"policy_t", "kl_t", "univg_r1", "ms_swift"}
    spoken = {name for span in re.findall(r"`([^`\n/]+)`", TEXT) for name in re.findall(r"\w+_\w+", span)}
    assert spoken - known - formulas - {"univg_kernels", "_neg"} == set()
