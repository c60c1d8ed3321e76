"""What a person sees while it runs: a live bar on a terminal, one plain line per step everywhere else.

Rank 0 speaks; on the other ranks everything here is silent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from univg_fast import distributed

# metric, its short name, how to write it; in the order of the line
_WORDS: tuple[tuple[str, str, str], ...] = (
    ("loss", "loss", "number"),
    ("reward", "rew", "number"),
    ("miou", "iou", "number"),
    ("rewards/format/mean", "fmt", "number"),
    ("frac_reward_zero_std", "zstd", "percent"),
    ("completions/mean_length", "len", "round"),
    ("completions/clipped_ratio", "cut", "percent"),
    ("kl", "kl", "number"),
    ("grad_norm", "gn", "number"),
    ("learning_rate", "lr", "rate"),
    ("num_samples", "n", "round"),
)
# metric, its name: told where it is not 0
_TROUBLES = (
    ("bad_records", "bad"),
    ("skipped_total", "skipped so far"),
    ("saves_failed", "SAVES FAILED"),
)
_FORMATS: dict[str, Callable[[float], str]] = {
    "number": lambda x: f"{x:.3g}" if abs(x) < 1000 else f"{x:.3e}",
    "percent": lambda x: f"{x:.0%}",
    "round": lambda x: f"{x:.0f}",
    "rate": lambda x: f"{x:.1e}".replace("e-0", "e-"),
}


@cache
def console() -> Console:
    """The one console of this process; wide enough for a table where the output is a file."""
    probe = Console()
    return probe if probe.is_terminal else Console(width=120)


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def numbers(metrics: Mapping[str, float]) -> str:
    """The metrics of a step, short: what is learned | how fast and how full | where the time went."""
    words = [f"{short} {_FORMATS[kind](metrics[key])}" for key, short, kind in _WORDS if key in metrics]
    if metrics.get("skipped"):
        words.append("SKIPPED (gradients not finite)")
    words += [f"{text} {metrics[key]:.0f}" for key, text in _TROUBLES if metrics.get(key)]
    speed = []
    if "tokens_per_second" in metrics:
        rate = metrics["tokens_per_second"]
        speed.append(f"{rate / 1000:.1f}k tok/s" if rate >= 1000 else f"{rate:.0f} tok/s")
    if "pack/fill" in metrics:
        speed.append(f"fill {metrics['pack/fill']:.0%}")
    if metrics.get("pack/imbalance", 0.0) >= 0.005:
        speed.append(f"wait {metrics['pack/imbalance']:.0%}")
    if "mfu" in metrics:
        speed.append(f"mfu {metrics['mfu']:.0%}")
    memory = metrics.get("memory/reserved_gb", metrics.get("memory/resident_gb"))
    if memory is not None:
        speed.append(f"{memory:.{0 if memory >= 10 else 1}f} GB")
    times = {k.removeprefix("timing_s/"): v for k, v in metrics.items() if k.startswith("timing_s/")}
    whole = times.pop("step", 0.0)
    parts = " ".join(f"{name} {seconds:.1f}" for name, seconds in times.items() if seconds >= 0.05)
    return " | ".join(filter(None, [" ".join(words), " ".join(speed), f"{parts} = {whole:.1f}s".strip(" =")]))


class Display:
    """Progress of `total` units named `name`, of which `done` were done before. Use it as a context manager.

    On a terminal it redraws at the bottom, with the numbers below the bar; elsewhere each update is a line,
    but not more often than every `quiet_s` seconds.
    """

    def __init__(self, name: str, total: int, done: int = 0, quiet_s: float = 0.0) -> None:
        self.name, self.total, self.quiet_s = name, total, quiet_s
        self.active = distributed.is_main()
        self._times: deque[tuple[float, int]] = deque([(time.monotonic(), done)], maxlen=50)
        self._last_line = 0.0
        self._live: Live | None = None
        if self.active and console().is_terminal:
            columns = (TextColumn("[bold]{task.description}"), BarColumn(30), MofNCompleteColumn())
            self._bar = Progress(*columns, TextColumn("eta {task.fields[eta]}"), console=console())
            self._task = self._bar.add_task(name, total=total, completed=done, eta="-:--")
            self._text = ""
            self._live = Live(get_renderable=self._render, console=console(), refresh_per_second=4)

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, done: int, text: str = "") -> None:
        """`done` units are done; `text` says the rest."""
        if not self.active:
            return
        now = time.monotonic()
        self._times.append((now, done))
        if self._live:
            self._bar.update(self._task, completed=done, total=self.total, eta=self.eta())
            self._text = text.replace(" | ", "\n", 1)
        elif done >= self.total or now - self._last_line >= self.quiet_s:
            self._last_line = now
            line = [f"{self.name} {done}/{self.total}", text, f"eta {self.eta()}"]
            print(" | ".join(filter(None, line)), flush=True)

    def _render(self) -> Group:
        return Group(self._bar, Text(self._text)) if self._text else Group(self._bar)

    def eta(self) -> str:
        """Time left at the pace of the last updates."""
        (start, before), (now, done) = self._times[0], self._times[-1]
        return clock((now - start) / (done - before) * (self.total - done)) if done > before else "-:--"


@contextmanager
def eval_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """`progress(done, total)` for an evaluation called `name`; without a terminal a line every 10 s."""
    with Display(f"eval {name}", 0, quiet_s=10.0) as display:

        def progress(done: int, total: int) -> None:
            display.total = total
            display.update(done)

        yield progress
