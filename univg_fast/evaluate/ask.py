"""`--model`: a benchmark's items answered by a model, on any number of ranks, and scored once all are."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.rewards import ask_for_images

from .answers import answer
from .items import Form, Item
from .journal import Journal
from .load import open_model, weights_of
from .predictions import Prediction

SAY_EVERY_S = 10.0


def ask(
    model: str,
    config: Config,
    items: Sequence[Item],
    data: dict[str, Any],
    out: Path,
    device: torch.device,
    shown: Mapping[str, bool] | None = None,
) -> tuple[dict[str, Prediction], dict[str, Any]]:
    """Answers by uid, on every rank, and what they depend on. Collective.

    An answer that lies in `out` from before is not asked for again. `data`: what tells the items' file and
    images from others. `shown`: how the items are asked otherwise than they stand there (oracle_image, direct).
    ValueError where the answers in `out` are of other settings.
    """
    generation = settings_of(config) | dict(shown or {})
    journal = Journal(out, {"model": model, "weights": weights_of(model), **data, **generation})
    distributed.barrier()  # all have read before any file is cut or grows
    left = [item for item in items if item.uid not in journal.answers]
    share = left[distributed.rank() :: distributed.world_size()]
    journal.open(distributed.rank())
    if left:
        if distributed.is_main() and len(left) < len(items):
            print(f"going on after {len(items) - len(left)} of {len(items)} answers in {out}", flush=True)
        packed, processor = open_model(model, config, device)
        clock = Clock(len(items), len(items) - len(left))
        for batch in answer(packed, processor, share, config.evaluate, config.rollout, form=form_of(config)):
            journal.add(batch)
            clock.tell(len(batch) * distributed.world_size())
    journal.close()
    parts = distributed.gather_objects({item.uid: journal.answers[item.uid] for item in share})
    for part in parts:
        journal.answers |= part
    return {item.uid: journal.answers[item.uid] for item in items}, generation


def settings_of(config: Config) -> dict[str, Any]:
    """What an answer depends on, beside the model and the question."""
    data = config.data
    return {
        "decoding": "greedy",
        "max_new_tokens": config.evaluate.max_completion_length,
        "stop_strings": list(config.rollout.stop_strings),
        "torch_dtype": config.model.torch_dtype,
        "prompt_template": data.prompt_template,
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
        "max_length": data.max_length,
        "exif": data.exif,
        **form_of(config)._asdict(),
    }


def form_of(config: Config) -> Form:
    """The form in which a model was taught to answer."""
    return Form(config.data.answer_style, ask_for_images(config.rewards.terms))


class Clock:
    """Says on rank 0 every ten seconds how far all are, as far as it can tell, and how long it will take."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.first, self.done = total, done, done
        self.started = self.told = time.monotonic()

    def tell(self, more: int) -> None:
        self.done = min(self.total, self.done + more)
        now = time.monotonic()
        if not distributed.is_main() or (now - self.told < SAY_EVERY_S and self.done < self.total):
            return
        self.told = now
        rate = (self.done - self.first) / (now - self.started)
        left = int((self.total - self.done) / rate)
        eta = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        print(f"eval {self.done}/{self.total} | {rate:.2f} samples/s | eta {eta}", file=sys.stderr, flush=True)
