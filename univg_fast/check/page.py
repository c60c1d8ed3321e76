"""check.html and data_report.json: what was found, on one page without network or script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from univg_fast.check import histogram
from univg_fast.check.estimate import Machine
from univg_fast.check.histogram import Histogram
from univg_fast.check.look import Counts
from univg_fast.check.packed import Packing
from univg_fast.data.index import Records
from univg_fast.data.prompts import prompt_text, target_text
from univg_fast.data.scan import Report
from univg_fast.files import write_whole
from univg_fast.report.overlays import Album, Picture, to_pixels
from univg_fast.report.page import UNPRINTABLE
from univg_fast.structs import Record
from univg_fast.train.memory import Line
from univg_fast.train.shapes import Shape

SHOWN = 20  # bad records that the page quotes for each kind
MAX_TEXT = 3000  # characters of an example's prompt


@dataclass(frozen=True)
class Example:
    """One record as the page shows it. `views`: picture, its boxes in pixels of the picture with their labels."""

    source: str
    format: str
    prompt: str
    target: str
    views: tuple[tuple[Picture, tuple[tuple[str, tuple[float, float, float, float]], ...]], ...]


@dataclass(frozen=True)
class Use:
    """All that is known of the files of one use."""

    name: str
    report: Report
    problem: str | None  # why training may not start
    counts: Counts | None = None
    packing: Packing | None = None
    memory: tuple[Line, ...] = ()
    hours: tuple[Line, ...] = ()
    examples: tuple[Example, ...] = ()
    over_budget: tuple[str, ...] = ()  # the first records whose rows are longer than the budget

    @property
    def histograms(self) -> list[Histogram]:
        if self.counts is None:
            return []
        found = [histogram.tokens("Prompt length, images included", self.counts.prompt)]
        if any(self.counts.response):
            found.append(histogram.tokens("Response length", self.counts.response))
        found.append(histogram.tokens("Image tokens per record", self.counts.image_tokens))
        found.append(histogram.images(self.counts.images))
        return found + ([histogram.sides(self.counts.box_sides)] if self.counts.box_sides else [])

    @property
    def kinds(self) -> list[tuple[str, int, list[str]]]:
        """(kind, number, the first messages) of the bad records, most frequent first."""
        quoted: dict[str, list[str]] = {}
        for entry in self.report.bad:
            if len(quoted.setdefault(entry.kind, [])) < SHOWN:
                quoted[entry.kind].append(entry.message)
        by_number = sorted(self.report.kinds.items(), key=lambda item: -item[1])
        return [(kind, number, quoted[kind]) for kind, number in by_number]

    def content(self) -> dict[str, Any]:
        """Its part of data_report.json: what training writes there, and the figures."""
        more: dict[str, Any] = {"problem": self.problem}
        if self.counts is not None:
            more["images_decoded"] = self.counts.decoded
            more["histograms"] = {
                made.title: {"unit": made.unit, "edges": made.edges, "counts": made.counts, **made.figures}
                for made in self.histograms
            }
        if self.packing is not None:
            derived = {name: round(getattr(self.packing, name), 4) for name in ("fill", "shared", "saved")}
            more["packing"] = asdict(self.packing) | derived | {"over": self.over_budget}
        more["memory_gib"] = [asdict(line) for line in self.memory]
        more["hours"] = [asdict(line) for line in self.hours]
        return self.report.content() | more


def examples(records: Records, report: Report, template: str) -> tuple[Example, ...]:
    """The first good record of each file."""
    album, found, first, seen = Album(Path("."), budget=1_500_000, max_side=360), [], 0, set()
    for (file, _, _), size in zip(records.files, records.mix.sizes, strict=True):
        if size and file.name not in seen and not album.full:
            seen.add(file.name)
            found.append(_example(records[first], report.formats.get(file.name, {}), template, album))
        first += size
    return tuple(found)


def _example(record: Record, formats: dict[str, int], template: str, album: Album) -> Example:
    views = []
    for i, path in enumerate(record.images):
        picture = album.add(path)
        here = [t for t in record.targets if t.image == i or (t.image is None and len(record.images) == 1)]
        boxes = tuple((t.label or "target", to_pixels(t.box, (picture.width, picture.height))) for t in here)
        views.append((picture, boxes))
    prompt = prompt_text(record, template)
    more = f" … ({len(prompt) - MAX_TEXT} more characters)" if len(prompt) > MAX_TEXT else ""
    return Example(
        record.source, ", ".join(formats), prompt[:MAX_TEXT] + more, target_text(record)[:MAX_TEXT], tuple(views)
    )


def write(folder: Path, name: str, uses: Sequence[Use], machine: Machine, shape: Shape | None, bound: float) -> Path:
    """Write FOLDER/data_report.json and FOLDER/check.html, each in one piece; returns the page's path."""
    may_start = not any(use.problem for use in uses)
    content: dict[str, Any] = {use.name: use.content() for use in uses}
    content |= {"may_start": may_start, "max_bad_fraction": bound, "machine": asdict(machine)}
    content["model"] = None if shape is None else asdict(shape)
    write_whole(folder / "data_report.json", json.dumps(content, indent=1) + "\n")
    environment = Environment(
        loader=PackageLoader("univg_fast", "check"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "duration": duration, "percent": lambda x: f"{100 * x:.1f} %"}
    page = environment.get_template("page.html.j2").render(
        name=name, uses=uses, machine=machine, shape=shape, bound=bound, may_start=may_start
    )
    write_whole(folder / "check.html", UNPRINTABLE.sub("\ufffd", page))
    return folder / "check.html"


def duration(hours: float) -> str:
    """Hours as a person says them: 3.2 h, 14 min, 8 s."""
    if hours >= 1:
        return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.2g} s"


def _figure(value: float) -> str:
    """A number to read: three digits, thousands apart."""
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:.3g}"
