"""TRL's GRPOTrainer on a small Qwen2-VL with images: its loss of one micro-batch, forward and backward.

Both score the completions' tokens only, as TRL does on a GPU (on a CPU it makes the logits of the prompts, too).
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from trl import GRPOTrainer

from univg_fast.data.samples import make_processor
from univg_fast.integrations.trl import patch

from .device import Cpu
from .dropin_host import Step, both
from .rollout import Size, make_model
from .trl_problem import make_records, make_tokenizer
from .trl_trainer import choosing, make_trainer

SIZES = {
    "default": Size(prompts=1, images=1, tokens=64, side=14, hidden=256, layers=2, vocab=32_000),
    "tiny": Size(prompts=1, images=1, group=2, tokens=4, side=4, text=20, hidden=64, layers=1, vocab=300),
}


def problem(size: str) -> tuple[Step, Step]:
    """(TRL's step, the same with the drop-in)."""
    shape = SIZES[size]
    with TemporaryDirectory() as name:
        folder = Path(name)
        records = make_records(shape, folder)
        make_model(shape, torch.device("cpu"))[1].save_pretrained(folder / "model")
        processor = make_processor(make_tokenizer(shape), prompt_template="short")
        trainer = make_trainer(shape, folder / "model", records, processor, 1, folder / "out", Cpu())
        trainer.model.train()
        trainer.__class__ = GRPOTrainer  # without clocks around methods of the loss
        trainer.current_gradient_accumulation_steps = 1
        rows = trainer.train_dataset
        inputs = trainer._generate_and_score_completions([rows[0] for _ in range(shape.group)])

    def step(drop_in: bool) -> torch.Tensor:
        with patch(trainer) if drop_in else choosing(compact=True):
            loss = trainer._compute_loss(trainer.model, dict(inputs))
        loss.backward()
        return loss.detach()

    return both(step, trainer.model)
