"""verl from its bare wheel, at home on a CPU.

Two things are not verl's: what it imports for its cluster, servers and prompt files alone (UNUSED) is empty where it is
not installed; and CPU, which verl does not list as a device, is added through verl's registers.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch

PEERS = Path(sys.prefix) / "peers"
UNUSED = {"ray", "zmq", "cupy", "fastapi", "uvicorn", "cachetools", "datasets", "pandas"}


class _Name(type):
    """A class that gives back what it is called with, and has every name below it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})

    def __call__(cls, *given: Any, **named: Any) -> Any:
        return given[0] if given else lambda x: x


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """UNUSED where it is not installed: modules that have every name."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in UNUSED else None

    def exec_module(self, module: Any) -> None:
        module.__getattr__ = lambda name: getattr(_Name("", (), {}), name)


def prepare() -> None:
    """Make verl importable, and at home on a CPU."""
    sys.path.append(str(PEERS))
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    sys.meta_path.append(_Absent())  # last: only for what is not there
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    from verl.models.transformers import monkey_patch
    from verl.plugin.platform import PlatformBase, set_platform

    device = types.ModuleType("cpu")
    device.__dict__.update(vars(torch.cpu))
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(device, name, lambda: 0)
    device.get_device_name = lambda: "CPU"  # type: ignore[attr-defined]
    device.mem_get_info = lambda: (0, 0)  # type: ignore[attr-defined]

    class Cpu(PlatformBase):
        device_name, vendor_name, device_module = "cpu", "cpu", device

        def is_available(self) -> bool:
            return True

        def current_device(self) -> str:
            return "cpu"

        def communication_backend_name(self) -> str:
            return "gloo"

        def ray_noset_envvars(self) -> list[str]:
            return []

        def visible_devices_envvar(self) -> str:
            return "NO_DEVICES"

    Cpu.__abstractmethods__ = frozenset()
    set_platform(Cpu())
    monkey_patch.is_trl_available = lambda: False  # verl 0.9 knows TRL up to 0.27
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")(FSDPEngineWithLMHead)
