"""What the pages have in common: the templates with what they may call, and how a page is written."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from univg_fast.evaluate.metrics import percent
from univg_fast.files import write_whole
from univg_fast.report.overlays import PREDICTION_COLOUR, TRUTH_COLOUR, to_pixels

# An untrained byte-level model says these too: HTML forbids the first, UTF-8 cannot hold the second.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|[\ud800-\udfff]")


def render(template: str, **values: Any) -> str:
    """A page as text."""
    return UNPRINTABLE.sub("\ufffd", _environment().get_template(template).render(**values))


def write(path: Path, page: str) -> Path:
    """Write the page; one that is there already is replaced in one piece."""
    write_whole(path, page)
    return path


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("univg_fast", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": lambda x: f"{100 * x:+.1f}",
        "capitalize_first": lambda s: s[:1].upper() + s[1:],
    }
    colours = {"truth": TRUTH_COLOUR, "prediction": PREDICTION_COLOUR}
    environment.globals |= {"to_pixels": to_pixels, "colours": colours}
    return environment
