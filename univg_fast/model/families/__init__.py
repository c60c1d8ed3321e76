"""Model families, one file each: a module of this folder with `CLASSES`, `family` and `SMALL` is found by itself."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from transformers import PretrainedConfig

from univg_fast.model.families.base import Family

FAMILIES: dict[str, ModuleType] = {  # by model_type
    module.CLASSES[0].model_type: module
    for module in (import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__) if info.name != "base")
}


def family_of(config: PretrainedConfig) -> Family:
    """The adapter for a model config; ValueError names the families there are."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model: expected one of the families {sorted(FAMILIES)}, got model_type={config.model_type!r}; "
            "CONTRIBUTING.md says how to add a family"
        )
    return FAMILIES[config.model_type].family(config)


__all__ = ["FAMILIES", "Family", "family_of"]
