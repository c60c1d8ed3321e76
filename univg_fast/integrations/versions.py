"""A host is looked at before it is patched: its version, and the parameters that the drop-in relies on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any


def require(package: str, tested: Sequence[str]) -> str:
    """The installed version of `package`, a distribution's name.

    tested: releases that the drop-in is tested with, oldest first; "1.16" stands for 1.16, 1.16.0, 1.16.1, …
    Raises ValueError where it is not installed, or is another release.
    """
    remedy = f'pip install "{package}=={tested[-1]}.*"'
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ValueError(f"{package} is not installed, expected {', '.join(tested)}; {remedy}") from None
    if not any(version == release or version.startswith(f"{release}.") for release in tested):
        raise ValueError(
            f"{package} {version} is installed, and this drop-in is tested with {', '.join(tested)}; {remedy}, "
            "or train without the drop-in"
        )
    return version


def require_signature(function: Callable[..., Any], names: Sequence[str]) -> None:
    """ValueError unless `function` has parameters of these names: a host's silent change is to be an error at entry."""
    has = inspect.signature(function).parameters
    missing = [name for name in names if name not in has]
    if missing:
        code = inspect.unwrap(function)
        code = getattr(code, "__func__", code).__code__
        raise ValueError(
            f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno}) has no parameter "
            f"{', '.join(missing)}; it has {', '.join(has)}. The host has changed: use a release that the drop-in is "
            "tested with"
        )
