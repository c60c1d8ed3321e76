"""Models: loading, family adapters, packed forward passes."""

from univg_fast.model.families import Family, family_of
from univg_fast.model.features import ImageFeatures
from univg_fast.model.load import load_model
from univg_fast.model.packed import PackedModel

__all__ = ["Family", "ImageFeatures", "PackedModel", "family_of", "load_model"]
