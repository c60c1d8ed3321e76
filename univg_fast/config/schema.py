"""Every key of the configuration: its name, type, default and meaning.

The comment at the end of a field's line is also what `--help` prints. Bounds live in `num(...)` and are
checked both for a loaded file and for an object made in code. Names are those of transformers and TRL, where
they have one.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from univg_fast.config.bounds import check
from univg_fast.config.fields import cores, filled, num, of_recipe
from univg_fast.config.reward_recipes import RECIPES, RecipeName
from univg_fast.data.builtin import BuiltinConfig

Entry = str | dict[str, Any]  # univg_fast/data/entries.py
AttentionName = Literal["auto", "torch", "flash_attn", "xformers", "varlen", "triton", "dense"]  # docs/performance.md
Schedule = Literal["cosine", "linear", "constant", "constant_with_warmup", "cosine_with_min_lr"]
LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo", "gmpo", "reinforce"]
FaultKind = Literal[
    "none", "nan_loss", "nan_gradient", "sigterm", "sigint", "sigkill", "hang", "slow", "disk_full", "bad_image"
]


@dataclass(frozen=True)
class RunConfig:
    dir: str = "runs/run"  # the run folder: everything a run writes lies in it
    seed: int = num(42, ge=0)  # order of data, sampling, initial weights; the built-in data has its own seed
    resume: str = "auto"  # auto (newest complete checkpoint, if any), never, or the path of a checkpoint folder
    max_steps: int | None = num(None, gt=0)  # stop early after so many steps (stage 2: rollouts); schedules stay
    dry_run: bool = False  # read the data, make one step on one batch, print the estimate; nothing is saved
    hang_timeout_s: float = num(600.0, gt=0)  # a rank that makes no progress for so long ends the run, and is named
    max_skipped_steps: int = num(10, gt=0)  # so many steps in a row with gradients that are not finite end the run


@dataclass(frozen=True)
class LoraConfig:
    r: int = num(16, gt=0)  # rank of the adapters
    lora_alpha: float = num(32.0, gt=0)  # their output is scaled by lora_alpha / r
    lora_dropout: float = num(0.0, ge=0, le=1)  # of their input, in the update only
    target_modules: tuple[str, ...] = ()  # endings of module names; empty: every linear layer of the language model
    modules_to_save: tuple[str, ...] = ()  # endings of names of modules that train as a whole beside the adapters
    merge_on_export: bool = True  # false: the exported folder holds adapters for the model at model.path


@dataclass(frozen=True)
class ModelConfig:
    path: str = "qwen2_vl_tiny"  # a local Hugging Face folder, or the name of a small built-in config
    torch_dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights that compute; the optimizer's stay float32
    attention: AttentionName = "auto"  # auto: an installed library that passes its trial on the device, else torch
    liger: bool = False  # Liger's RMSNorm, LayerNorm, SwiGLU and RoPE, on CUDA; each seen in use before step 1
    freeze_vision_tower: bool = True  # the language model trains alone (and the projector, if it is not frozen)
    freeze_multi_modal_projector: bool | None = None  # the tower's merger; null: as the tower
    lora: LoraConfig | None = None  # train adapters only, by peft
    kernels: Literal["auto", "reference"] = "auto"  # of the losses; reference: plain torch, to compare with
    export: str | None = None  # write the stages' newest model to this folder, in transformers' format, and end
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    init_seed: int = num(0, ge=0)  # weights of a built-in config that has no checkpoint

    @property
    def projector_is_frozen(self) -> bool:
        given = self.freeze_multi_modal_projector
        return self.freeze_vision_tower if given is None else given


@dataclass(frozen=True)
class DataConfig:
    builtin: BuiltinConfig | None = None  # make this data set in the run folder, instead of reading files
    sft: tuple[Entry, ...] = ()  # stage-1 files: paths, or {path, weight, image_root, coordinates, answer_style, cot}
    grpo: tuple[Entry, ...] = ()  # stage-2 files
    eval: tuple[Entry, ...] = ()  # held-out files
    image_root: str | None = None  # relative image paths start here; null: at the data file's folder
    min_pixels: int = num(3136, gt=0)  # of one image after resizing
    max_pixels: int = num(401408, gt=0)  # of one image after resizing
    max_bad_fraction: float = num(0.01, ge=0, le=1)  # more bad records than this stop the run
    num_workers: int = cores()  # threads that decode images ahead of the step, of each rank; 0: one
    prompt_template: Literal["qwen2_vl", "short"] = "qwen2_vl"  # short: no system turn, no format instruction
    answer_style: Literal["univg_r1", "bbox_2d", "box_tokens"] | None = None  # of answers; null: as each file's targets
    exif: Literal["ignore", "apply"] = (
        "ignore"  # apply: turn images as their EXIF says; boxes are then of the turned ones
    )
    cache_dir: str | None = None  # where images inside of parquet files are unpacked; null: ~/.cache/univg_fast
    overfit: int | None = num(None, gt=0)  # train and evaluate on the first so many records only: can it learn them?
    max_length: int = num(8192, gt=0)  # tokens of a prompt (stage 1: and its response); longer: skipped, counted


@dataclass(frozen=True)
class PackConfig:
    budget_tokens: int = num(16384, gt=0)  # length of a packed row; a sample that is longer has a longer row of its own
    window: int = num(512, ge=0)  # stage 1: samples whose rows are planned together; 0: each step by itself


@dataclass(frozen=True)
class OptimConfig:
    max_steps: int | None = num(None, gt=0)  # steps of the stage (stage 2: rollouts); null: num_train_epochs decides
    num_train_epochs: float = num(1.0, gt=0)  # used where max_steps is null
    learning_rate: float = num(5e-6, gt=0)  # peak
    lr_scheduler_type: Schedule = "cosine"  # after the warm-up, which constant has as well
    min_lr_rate: float = num(0.0, ge=0, le=1)  # of cosine_with_min_lr: the last rate as a fraction of the peak
    warmup_ratio: float = num(0.0, ge=0, le=1)  # fraction of the stage's steps
    weight_decay: float = num(0.0, ge=0)  # on matrices only
    adam_beta1: float = num(0.9, ge=0, le=1)  # AdamW
    adam_beta2: float = num(0.999, ge=0, le=1)  # AdamW
    adam_epsilon: float = num(1e-8, gt=0)  # AdamW
    max_grad_norm: float = num(1.0, ge=0)  # clip the global gradient norm; 0: do not


@dataclass(frozen=True)
class SftConfig(OptimConfig):
    per_step_samples: int = num(24, gt=0)  # samples of one optimizer step, over all ranks


@dataclass(frozen=True)
class GrpoStageConfig(OptimConfig):
    learning_rate: float = num(1e-6, gt=0)  # peak
    lr_scheduler_type: Schedule = "linear"  # after the warm-up, which constant has as well
    num_generations: int = num(8, ge=2)  # G, responses of one prompt
    prompts_per_step: int = num(16, gt=0)  # prompts of one rollout, over all ranks
    steps_per_generation: int = num(1, gt=0)  # optimizer steps that share out the prompts of one rollout
    num_iterations: int = num(1, gt=0)  # times that each rollout is trained on (mu)
    max_completion_length: int = num(256, gt=0)  # tokens
    temperature: float = num(1.0, gt=0)  # of sampling and of the loss
    top_k: int = num(0, ge=0)  # 0: off
    top_p: float = num(1.0, gt=0, le=1)  # 1: off
    beta: float = num(0.04, ge=0)  # weight of the KL term; 0: no reference pass
    epsilon_low: float = num(0.2, ge=0, le=1)  # the ratio is clipped below 1 - epsilon_low
    epsilon_high: float = num(0.2, ge=0)  # and above 1 + epsilon_high
    loss_type: LossType = "grpo"  # docs/losses.md; its mean: over tokens, responses, or a constant length
    importance_sampling_level: Literal["token", "sequence", "sequence_token"] = "token"  # sequence: GSPO
    scale_rewards: Literal["group", "batch", "none"] = "group"  # the std that divides the centred reward
    difficulty: Literal["exp", "power", "log", "none"] = "exp"  # the weight phi(mIoU) of a group's policy term
    difficulty_power: float = num(1.0, gt=0)  # of difficulty=power
    normalize_difficulty: bool = False  # phi divided by its mean over the step's groups
    mask_truncated_completions: bool = False  # completions cut at max_completion_length give no loss
    zero_std_groups: Literal["keep", "drop"] = "keep"  # groups of equal rewards; keep: for their KL term
    dynamic_sampling_max_draws: int = num(1, gt=0)  # draw prompts anew for groups of equal rewards, so often at most
    reference: Literal["auto", "copy", "host"] = "auto"  # auto: the adapters off, or a copy; host: in host memory
    loss_options: dict[str, Any] = filled({})  # further fields of univg_kernels.GrpoConfig


@dataclass(frozen=True)
class RewardsConfig:
    recipe: RecipeName | None = None  # terms, parser and difficulty_from of a published system
    terms: dict[str, float] = of_recipe()  # reward name, or FILE.py:FUNCTION: weight in the sum
    parser: Literal["univg_r1", "strict", "lenient"] = of_recipe()  # how boxes are read from completions
    difficulty_from: str = of_recipe()  # the term whose group mean is the mIoU of phi
    iou_threshold: float = num(0.5, gt=0, le=1)  # of the terms iou_threshold and f1
    iou_low: float = num(0.1, ge=0, le=1)  # of iou_dual and matching_dual: below it 0
    iou_high: float = num(0.9, ge=0, le=1)  # and from here on 1
    length_limit: int | None = num(None, gt=0)  # tokens at which length is -1; null: grpo.max_completion_length
    length_buffer: int = num(64, gt=0)  # tokens before that limit where length begins to fall
    repetition_ngram: int = num(3, gt=0)  # words of a run that repetition counts

    def __post_init__(self) -> None:
        for key, value in RECIPES[self.recipe or "univg_r1"].items():
            given = getattr(self, key)
            if given is None:
                object.__setattr__(self, key, deepcopy(value))
            elif self.recipe is not None and given != value:
                raise ValueError(
                    f"rewards.{key}: expected none beside rewards.recipe={self.recipe}, which says {value}, got {given}"
                )


@dataclass(frozen=True)
class RolloutConfig:
    stop_strings: tuple[str, ...] = ()  # text that ends a completion, such as </answer>, beside its end-of-turn token
    cache_gib: float = num(8.0, gt=0)  # of a rollout's keys, values and sampling at once; what needs more goes in turns
    cuda_graphs: bool = True  # on a GPU, replay a decode step instead of launching each of its kernels


@dataclass(frozen=True)
class EvaluateConfig:
    max_completion_length: int = num(256, gt=0)  # tokens, greedy
    prompts_per_batch: int = num(16, gt=0)  # on one rank
    max_samples: int | None = num(None, gt=0)  # the first so many of the held-out samples; null: all


@dataclass(frozen=True)
class DeepSpeedConfig:
    zero_stage: int = num(1, ge=0, le=3)  # what is sharded: 1 optimizer, 2 + gradients, 3 + parameters
    config: dict[str, Any] = filled({})  # laid over the DeepSpeed config that the trainer makes


@dataclass(frozen=True)
class SaveConfig:
    steps: int = num(200, ge=0)  # a checkpoint every so many and at a stage's end; 0: only where run.max_steps ends it
    total_limit: int = num(2, gt=0)  # complete checkpoints kept
    on_error: Literal["warn", "stop"] = "warn"  # warn: a checkpoint that cannot be written is tried again at the next


@dataclass(frozen=True)
class ProfileConfig:
    start: int = num(0, ge=0)  # first step of a torch profiler window; 0: none
    steps: int = num(3, gt=0)  # its length


@dataclass(frozen=True)
class LogConfig:
    steps: int = num(1, gt=0)  # a console line every so many steps; metrics.jsonl holds every step
    rollout_steps: int = num(1, ge=0)  # write rollouts/ every so many steps; 0: never
    tensorboard: bool = False  # also write tb/
    wandb: str | None = None  # also log to this project; WANDB_MODE=offline needs no network
    trackio: str | None = None  # also log to this project
    sheet_steps: int = num(0, ge=0)  # a sheet of prompts, images, boxes and rewards every so many steps; 0: never
    profile: ProfileConfig = field(default_factory=ProfileConfig)


@dataclass(frozen=True)
class FaultConfig:
    """What goes wrong on purpose: drills for users, and this package's own tests (docs/reliability.md)."""

    kind: FaultKind = "none"  # what goes wrong
    rank: int = num(0, ge=0)  # on which rank
    step: int = num(1, gt=0)  # in which step of the stage
    phase: str = "update"  # on entering which phase: data, gen, score, ref, update, optim, save, eval
    stage: Literal["sft", "grpo"] | None = None  # in which stage; null: in any
    seconds: float = num(1.0, ge=0)  # of slow
    times: int = num(1, gt=0)  # in so many steps from there on


@dataclass(frozen=True)
class Config:
    """The whole configuration; each attribute is a section of the YAML."""

    stages: tuple[Literal["sft", "grpo"], ...] = ("sft", "grpo")  # what runs, in this order
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    grpo: GrpoStageConfig = field(default_factory=GrpoStageConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    log: LogConfig = field(default_factory=LogConfig)
    fault: FaultConfig = field(default_factory=FaultConfig)

    def __post_init__(self) -> None:
        check(self)
