"""What a run needs before its first step: data files, records, tokenizer, processor. The same on every rank."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.config import Config, ModelConfig
from univg_fast.config.bounds import TOWER_BESIDE_LORA
from univg_fast.data.builtin import write_builtin
from univg_fast.data.index import Records
from univg_fast.data.prompts import corpus
from univg_fast.data.samples import Processor, make_sample
from univg_fast.data.scan import Report, require, scan, write_report
from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.evaluate.load import DTYPES, processor_of
from univg_fast.files import write_whole
from univg_fast.model import PackedModel, family_of, load_model
from univg_fast.model.liger import apply_liger
from univg_fast.model.load import (
    builtin_configs,
    check_path,
    freeze_vision,
    projector_parts,
    read_config,
    read_tokenizer,
    small_config,
)
from univg_fast.model.lora import apply_lora
from univg_fast.rewards import ask_for_images, check_terms, unscorable
from univg_fast.structs import Record, Sample
from univg_fast.train.engine import free_memory
from univg_fast.train.looking import agree_on, look_together

NEEDS = {"sft": "response", "grpo": "box", "eval": "box"}  # what a record of each use must have
TOLD = 20  # bad records of a use that the console names


@dataclass(frozen=True)
class Inputs:
    """Records of each use ("sft", "grpo", "eval") and the processor that turns them into samples."""

    records: dict[str, Sequence[Record]]
    processor: Processor


def prepare(config: Config, run_dir: Path, progress: Any = None) -> Inputs:
    """Read and check the data, and make the tokenizer and processor; `progress` as in `scan`. Collective."""
    files = files_to_read(config, run_dir)
    found = {use: scan_use(config, use, entries, progress) for use, entries in files.items() if entries}
    number = sum(len(records) for records, _ in found.values())
    agree_on(f"{number} records", [(use, records.digest()) for use, (records, _) in found.items()])
    if distributed.is_main():  # before anything is refused: the report says what to repair
        write_report(run_dir / "data_report.json", {use: report for use, (_, report) in found.items()})
        for use, (_, report) in found.items():
            tell(use, report)
    for _, report in found.values():
        require(report, config.data.max_bad_fraction)
    records = {use: found[use][0] if use in found else [] for use in files}
    return Inputs(records, make_run_processor(config, records))


def files_to_read(config: Config, run_dir: Path) -> dict[str, list[Any]]:
    """Data entries of each use. ValueError where the stages lack a model, a reward, a batch or a file. Collective."""
    check_path(config.model.path)  # what a late stage needs is asked for before the first one
    if "grpo" in config.stages:
        check_terms(config.rewards.terms)
        if distributed.is_main():
            told = " + ".join(f"{weight:g}·{name}" for name, weight in config.rewards.terms.items())
            print(f"rewards ({config.rewards.recipe or 'no recipe'}): {told}", flush=True)
    for stage, key in (("sft", "per_step_samples"), ("grpo", "prompts_per_step")):
        size = getattr(getattr(config, stage), key)
        if stage in config.stages and size < distributed.world_size():
            raise ValueError(
                f"{stage}.{key}: expected at least one for each of {distributed.world_size()} ranks, got {size}"
            )
    files = data_files(config, run_dir)
    for stage in config.stages:
        if not files[stage]:
            raise ValueError(
                f"data.{stage}: expected at least one file for stage {stage}, got none: --data.{stage}=[FILE]"
            )
    return files


def scan_use(config: Config, use: str, entries: list[Any], progress: Any = None) -> tuple[Records, Report]:
    """The records of one use, read as the config says; `progress` as in `scan`. Collective: ranks share the images.

    What the rewards ask of answers, prompts and targets ask for, too, whatever the stages: stage 1 may be a run of its
    own. A record that they cannot score is bad.
    """
    data, rewards = config.data, config.rewards
    return scan(
        entries,
        data.image_root,
        NEEDS[use],
        problem_of=lambda record: unscorable(record, rewards.terms, rewards.parser) if use == "grpo" else None,
        name_images=ask_for_images(rewards.terms),
        cache_dir=data.cache_dir,
        progress=progress,
        look=look_together,
        exif=data.exif,
        answer_style=data.answer_style,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
    )


def tell(use: str, report: Report) -> None:
    """What was found, one rendered example of each file, and the first of the bad records by file and line."""
    print(f"data.{use}: {report.summary()}", *report.details(), sep="\n", flush=True)
    for entry in report.bad[:TOLD]:
        print(f"skipped {entry.message}", file=sys.stderr, flush=True)
    if len(report.bad) > TOLD:
        print(f"... and {len(report.bad) - TOLD} more, all of them in data_report.json", file=sys.stderr, flush=True)


def data_files(config: Config, run_dir: Path) -> dict[str, list[Any]]:
    """Entries of data files by use; the built-in data set is written by rank 0 if it is asked for."""
    if config.data.builtin is None:
        given = {"sft": [*config.data.sft], "grpo": [*config.data.grpo], "eval": [*config.data.eval]}
        return {use: paths if use in (*config.stages, "eval") else [] for use, paths in given.items()}
    builtin = config.data.builtin
    folder = run_dir / "data"

    def write() -> dict[str, list[Any]]:
        stamp, wanted = folder / "config.json", json.dumps(builtin.__dict__, sort_keys=True)
        if not (stamp.is_file() and stamp.read_text() == wanted):
            write_builtin(folder, builtin)
            write_whole(stamp, wanted)
        return {
            "sft": [str(folder / "stage1.json")],
            "grpo": [str(folder / "stage2.json")],
            "eval": [str(folder / "eval.json")],
        }

    paths = distributed.all_or_none("writing the built-in data", lambda: write() if distributed.is_main() else {})
    return distributed.broadcast_object(paths)


def make_run_processor(config: Config, records: dict[str, Sequence[Record]]) -> Processor:
    """The model folder's tokenizer and vision numbers; for a built-in config a tokenizer learned from the records."""
    path = config.model.path
    if path in builtin_configs():
        tokenizer: Any = build_tokenizer(corpus([r for use in ("sft", "grpo") for r in records[use]]))
        family = family_of(small_config(path, tokenizer.get_vocab()))
    else:
        tokenizer, family = read_tokenizer(path), family_of(read_config(path))
    return processor_of(tokenizer, family, config.data)


def load_policy(
    config: Config, processor: Processor, path: str, device: torch.device, adapters: bool = True
) -> PackedModel:
    """The model at `path` on `device`, frozen and with its layers replaced as the config says.

    `adapters` False: without those of `model.lora`, as for evaluation, or a reference of its own.
    """
    how, vocab = config.model, processor.tokenizer.get_vocab()
    seed = config.run.seed + how.init_seed
    free_memory(device)
    with torch.random.fork_rng(devices=[]):  # peft draws first weights, also where others are read over them
        model: Any = load_model(path, DTYPES[how.torch_dtype], vocab=vocab, seed=seed)
    model.to(device)
    told = freeze(model, how if adapters else replace(how, lora=None), seed)
    packed = PackedModel(model, how.attention)
    packed.lines += told
    if how.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if how.liger:
        packed.lines.append(apply_liger(packed))
    return packed


def freeze(model: Any, how: ModelConfig, seed: int = 0) -> list[str]:
    """Decide what of a transformers model trains; returns lines to tell. ValueError where that is not as `how` says."""
    freeze_vision(model, how.freeze_vision_tower, how.projector_is_frozen)
    if how.lora is None:
        return []
    settings = {key: value for key, value in asdict(how.lora).items() if key != "merge_on_export"}
    if how.freeze_vision_tower and not how.projector_is_frozen:  # peft freezes whatever it is not told of
        settings["modules_to_save"] = (
            *how.lora.modules_to_save,
            *(f"visual.{name}" for name in projector_parts(model)),
        )
    told = apply_lora(model, seed=seed, **settings)
    if not how.freeze_vision_tower and not any(p.requires_grad for p in model.model.visual.parameters()):
        raise ValueError(TOWER_BESIDE_LORA)
    return [told]


def first_sample(records: Sequence[Record], processor: Processor, with_response: bool) -> Sample:
    """The first record that can be decoded: what a rank without rows of its own trains on with weight 0."""
    problem: Exception | None = None
    for record in records[:100]:
        try:
            return make_sample(record, processor, with_response)
        except ValueError as error:
            problem = error
    raise ValueError(f"data: none of the first {min(len(records), 100)} records can be decoded; the last: {problem}")
