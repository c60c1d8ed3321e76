"""What an earlier run left in run.dir: gone on with, moved aside, or refused, but never mixed with another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from univg_fast.config import Config, to_yaml

LEFT = (
    *("ckpt", "hf", "eval", "rollouts", "sheets", "tb", "prof", "crash", "logs"),
    *("metrics.jsonl", "events.jsonl", "track.json", "report.html"),
)
MAY_DIFFER = (
    "run.dir",
    "run.resume",
    "run.max_steps",
    "run.hang_timeout_s",
    "run.max_skipped_steps",
    "stages",
    "save.",
    "log.",
    "fault.",
    "model.export",
    "model.lora.merge_on_export",
)


def settle(config: Config, run_dir: Path) -> None:
    """Make run.dir ready; for one rank to call.

    run.resume=never moves what is there into run.dir/old_N. Otherwise ValueError names the keys that the earlier run
    had otherwise: its models and checkpoints are not this configuration's.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    there = [run_dir / name for name in LEFT if (run_dir / name).exists()]
    if config.run.resume == "never" and there:
        number = next(n for n in range(1, 10_000) if not (run_dir / f"old_{n}").exists())
        (run_dir / f"old_{number}").mkdir()
        for path in there:
            path.rename(run_dir / f"old_{number}" / path.name)
        return
    before = run_dir / "config.yaml"
    if not before.is_file() or not any((run_dir / name).is_dir() for name in ("ckpt", "hf", "eval")):
        return
    was, now = (flat(yaml.safe_load(text)) for text in (before.read_text(), to_yaml(config)))
    changed = [k for k in sorted(was | now) if was.get(k) != now.get(k) and not k.startswith(MAY_DIFFER)]
    if changed:
        told = "; ".join(f"{key} was {was.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise ValueError(
            f"{run_dir} holds a run with another configuration ({told}). Give this one another --run.dir, "
            "or --run.resume=never to move the old one aside"
        )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}
