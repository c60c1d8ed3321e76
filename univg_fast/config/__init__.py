"""Typed configuration: one YAML (a recipe's name or a file) plus `--section.key=value` on the command line.

Precedence: command line, YAML, the defaults in `schema.py`. An unknown key or a wrong type stops at once.
"""

from univg_fast.config.load import config_hash, load_config, to_yaml
from univg_fast.config.read import ConfigError, recipe_names
from univg_fast.config.schema import (
    Config,
    DataConfig,
    DeepSpeedConfig,
    EvaluateConfig,
    GrpoStageConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    PackConfig,
    RewardsConfig,
    RolloutConfig,
    RunConfig,
    SaveConfig,
    SftConfig,
)

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "DeepSpeedConfig",
    "EvaluateConfig",
    "GrpoStageConfig",
    "LogConfig",
    "ModelConfig",
    "OptimConfig",
    "PackConfig",
    "RewardsConfig",
    "RolloutConfig",
    "RunConfig",
    "SaveConfig",
    "SftConfig",
    "config_hash",
    "load_config",
    "recipe_names",
    "to_yaml",
]
