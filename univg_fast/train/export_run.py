"""`model.export=FOLDER`: the newest model of a run as a transformers folder, in one process, without training on.

The run's own config.yaml says how the model was made; DeepSpeed's files are read on the host, whatever number of ranks
and whichever ZeRO stage wrote them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.config import Config, load_config
from univg_fast.data.samples import Processor
from univg_fast.model import PackedModel
from univg_fast.model.load import ADAPTERS, builtin_configs
from univg_fast.train import manifest
from univg_fast.train.export import export
from univg_fast.train.reshape import frozen_sum
from univg_fast.train.resume import find
from univg_fast.train.setup import load_policy, make_run_processor, prepare


def export_run(given: Config) -> None:
    """Write what run.dir has last: the export of a finished stage, or the newest checkpoint of one under way."""
    run_dir, folder = Path(given.run.dir), Path(str(given.model.export))
    if distributed.world_size() > 1:
        raise ValueError("model.export: expected one process (python -m univg_fast.train ...), got torchrun with more")
    if folder.exists():
        raise ValueError(f"model.export: expected a folder that is not there yet, got {folder}")
    if not (run_dir / "config.yaml").is_file():
        raise ValueError(f"model.export: expected run.dir to be the folder of a run, got {run_dir} without config.yaml")
    config = load_config(["--config", str(run_dir / "config.yaml"), f"--run.dir={run_dir}"])
    lora = config.model.lora
    apart = lora is not None and not (given.model.lora or lora).merge_on_export  # may be said anew
    start: str = config.model.path
    source: Path | None = None
    for number, stage in reversed(list(enumerate(config.stages))):
        done = run_dir / "hf" / stage
        finished = (done / "config.json").is_file()
        source = done if finished else find(run_dir / "ckpt", stage, "auto")
        if source is not None:
            start = str(run_dir / "hf" / config.stages[number - 1]) if number else start
            break
    if source is None:
        raise ValueError(f"model.export: expected a run with a checkpoint or a finished stage, got {run_dir}")
    if finished and apart:
        _copy_adapters(done, folder)
    else:
        processor, host = _processor(config, run_dir), torch.device("cpu")
        model = load_policy(config, processor, str(done) if finished else start, host, adapters=not finished)
        if not finished:
            fill(model, source)
        export(model, processor, folder, adapters_for=start if apart else None)
    print(f"exported {source} to {folder}: {'LoRA adapters' if apart else 'the whole model'}", flush=True)


def fill(model: PackedModel, checkpoint: Path) -> None:
    """Put a checkpoint's trained weights into the model that its stage began with."""
    then = manifest.read(checkpoint)
    if then["frozen"] != frozen_sum(model):
        raise ValueError(f"{checkpoint}: the weights that do not train are not those that it was written beside")
    saved = _saved_weights(checkpoint, then["zero_stage"])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if lost := sorted(trained.keys() - saved.keys()):
        raise ValueError(f"{checkpoint}: its weights are another model's; missing: {', '.join(lost[:5])}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name].contiguous())


def _saved_weights(checkpoint: Path, zero_stage: int) -> Mapping[str, Any]:
    """Weights by name, each of them read from the disk when it is used."""
    if zero_stage < 3:
        file = checkpoint / manifest.ENGINE / "mp_rank_00_model_states.pt"
        weights: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=False, mmap=True)["module"]
        return weights
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        pieces: Mapping[str, Any] = get_fp32_state_dict_from_zero_checkpoint(
            str(checkpoint), manifest.ENGINE, exclude_frozen_parameters=True, lazy_mode=True
        )
    return pieces


def _processor(config: Config, run_dir: Path) -> Processor:
    if config.model.path in builtin_configs():  # its tokenizer was learned from the records
        return prepare(config, run_dir).processor
    return make_run_processor(config, {})


def _copy_adapters(done: Path, folder: Path) -> None:
    if not (done / ADAPTERS).is_file():
        raise ValueError(
            f"model.export: expected adapters in {done}, got a model: the run had model.lora.merge_on_export=true; "
            "a checkpoint of the stage would still have them apart"
        )
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(done, temporary)
    manifest.sync([*temporary.rglob("*"), temporary])
    os.replace(temporary, folder)
