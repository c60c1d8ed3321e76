"""The built-in data set: multi-image grounding on real photographs, exact by construction, from a seed.

The three files have random streams and crops of their own: no image occurs in two of them. The photographs
behind the crops (PICTURES.md) and the kinds of objects are the same, so "held out" means new scenes, not a
new world.
"""

from .config import TASKS, BuiltinConfig
from .write import write_builtin

__all__ = ["TASKS", "BuiltinConfig", "write_builtin"]
