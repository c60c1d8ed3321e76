"""OpenRLHF's own modules, imported from the bare wheel without what they would bring: Ray, vLLM, flash-attn.

`openrlhf.models.{actor,loss}` are imported as they are; the packages' `__init__` files, which import the rest, are not
run. flash-attn cannot be installed without CUDA: of it, OpenRLHF needs four functions that take padding out of rows and
put it back, which are written here in our own words.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from ops.peers.source import PEERS
from torch import Tensor

__all__ = ["PEERS", "OpenRLHF", "imported"]
VERSION = "0.11.2"


class OpenRLHF(NamedTuple):
    actor: Any
    loss: Any
    utils: Any


def unpad_input(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    lengths = mask.sum(1)
    indices = mask.flatten().nonzero()[:, 0]
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return x.flatten(0, 1)[indices], indices, ends, int(lengths.max()), lengths


def pad_input(x: Tensor, indices: Tensor, batch: int, length: int) -> Tensor:
    return x.new_zeros(batch * length, *x.shape[1:]).index_copy(0, indices, x).unflatten(0, (batch, length))


def index_first_axis(x: Tensor, indices: Tensor) -> Tensor:
    return x[indices]


def rearrange(x: Tensor, pattern: str) -> Tensor:
    assert pattern == "b s ... -> (b s) ..."
    return x.flatten(0, 1)


def _module(name: str, **names: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(names)
    return module


@contextmanager
def imported(wheels: Path, folder: Path) -> Iterator[OpenRLHF]:
    """The modules, for the length of a block. `wheels`: where the bare wheel lies; `folder`: an empty one."""
    info = wheels / f"openrlhf-{VERSION}.dist-info"
    if not info.is_dir():
        pytest.skip(f"openrlhf {VERSION} is not in {wheels}; `make setup` puts it there", allow_module_level=True)
    (folder / info.name).symlink_to(info)  # so that the installed version is found, and no other package of `wheels`
    around = {
        "flash_attn": _module("flash_attn"),
        "flash_attn.bert_padding": _module(
            "flash_attn.bert_padding",
            unpad_input=unpad_input,
            pad_input=pad_input,
            index_first_axis=index_first_axis,
            rearrange=rearrange,
        ),
        "flash_attn.utils": _module("flash_attn.utils"),
        "flash_attn.utils.distributed": _module("flash_attn.utils.distributed", all_gather=None),
    }
    packages = {
        name: _module(name, __path__=[str(wheels / name.replace(".", "/"))]) for name in ("openrlhf", "openrlhf.models")
    }
    sys.path.insert(0, str(folder))
    sys.modules |= around | packages
    try:
        found = [importlib.import_module(f"openrlhf.models.{name}") for name in OpenRLHF._fields]
        for name in around:
            del sys.modules[name]  # transformers asks whether flash-attn is there
        yield OpenRLHF(*found)
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n in around or n.split(".")[0] == "openrlhf"]:
            del sys.modules[name]
