"""The built-in data set: multi-image grounding on real photographs, exact by construction, from a seed."""

from .config import TASKS, BuiltinConfig
from .write import write_builtin

__all__ = ["TASKS", "BuiltinConfig", "write_builtin"]
