"""A figure's commit is that of this code, or none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from univg_fast.train import environment

NAMED = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


def commit_in(folder: Path) -> str:
    """What the module says of itself, lying in this folder."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import environment; print(environment.commit())"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_commit_of_the_project_around_is_not_ours(tmp_path: Path) -> None:
    """As where it is installed into a .venv that lies in a checkout of the user's own."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    folder = tmp_path / ".venv" / "site-packages"
    folder.mkdir(parents=True)
    assert environment.__file__ is not None
    shutil.copy(environment.__file__, folder / "environment.py")
    (tmp_path / "theirs.py").touch()
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git("init", "-q")
    git("add", "theirs.py", ".gitignore")
    git(*NAMED, "commit", "-q", "-m", "theirs")
    assert commit_in(folder) == "None"
    git("add", "-f", ".venv")
    git(*NAMED, "commit", "-q", "-m", "ours")
    assert commit_in(folder) == git("rev-parse", "--short=12", "HEAD")
