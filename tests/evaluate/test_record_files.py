"""The trainer's own held-out files: entries, ids and boxes are those that the trainer reads of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from univg_fast.config.schema import DataConfig
from univg_fast.data.scan import scan
from univg_fast.evaluate.__main__ import main
from univg_fast.evaluate.benchmarks import read_items
from univg_fast.structs import Record

SIZE, PIXELS = (500, 400), [100, 100, 400, 300]


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Boxes in pixels; the second image is a JPEG that EXIF turns."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    Image.new("RGB", SIZE).save(tmp_path / "b.jpg", exif=turned)
    boxes = {"a.png": PIXELS, "b.jpg": [20, 40, 100, 150]}
    return [
        {"images": [image], "question": "<image>Where?", "targets": [{"box": box, "image": 0}], "task": "one"}
        for image, box in boxes.items()
    ]


def trained(data: DataConfig) -> list[Record]:
    given = {name: getattr(data, name) for name in ("exif", "min_pixels", "max_pixels", "answer_style")}
    found = scan(data.eval, data.image_root, "box", cache_dir=data.cache_dir, **given)[0]
    return [replace(record, source=Path(record.source).name) for record in found]


def judged(path: Path, data: DataConfig) -> list[Record | None]:
    return [item.record for item in read_items("records", path, None, None, data)[0]]


@pytest.mark.parametrize("exif", ["ignore", "apply"])
@pytest.mark.parametrize("coordinates", ["pixel", "resized"])
def test_boxes_are_those_of_the_data_entry(
    rows: list[dict[str, Any]], tmp_path: Path, exif: Any, coordinates: str
) -> None:
    path = tmp_path / "held.json"
    path.write_text(json.dumps(rows))
    entry = {"path": str(path), "coordinates": coordinates, "answer_style": "bbox_2d"}
    data = DataConfig(eval=(entry,), exif=exif, max_pixels=200704, answer_style="box_tokens")
    assert judged(path, data) == trained(data) != [] and len(trained(data)) == 2


@pytest.mark.parametrize("kind", ["parquet", "dataset_info"])
def test_a_file_of_any_kind_has_all_of_its_entries(rows: list[dict[str, Any]], tmp_path: Path, kind: str) -> None:
    for row in rows:
        row["targets"] = [{"box": [1, 2, 300, 400], "image": 0}]
    path = tmp_path / "held.parquet"
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="of the extra train")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows * 9), path)
    else:
        path = tmp_path / "dataset_info.json"
        (tmp_path / "held.json").write_text(json.dumps(rows * 9))
        path.write_text(json.dumps({"held": {"file_name": "held.json"}}))
    data = DataConfig(eval=(str(path),), cache_dir=str(tmp_path / "cache"))
    assert len(judged(path, data)) == 18 and judged(path, data) == trained(data)
    said = tmp_path / "said.jsonl"
    said.write_text('{"text": "<answer>(1,2),(300,400)</answer>"}\n' * 18)
    given = {"--benchmark": "records", "--data": path, "--predictions": said, "--out": tmp_path / "out"}
    words = [str(word) for pair in given.items() for word in pair]
    assert main([*words, f"--data.cache_dir={tmp_path / 'cache'}"]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (result["n"], result["miou"], result["data"]["bad_entries"]) == (18, 1.0, 0)


def test_the_command_reads_as_the_configuration_says(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "held.json").write_text(json.dumps(rows))
    entry = {"path": str(tmp_path / "held.json"), "coordinates": "pixel"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"eval": [entry], "exif": "apply"}}))
    said = ["(200,250),(800,750)", "(50,80),(250,300)"]  # the second one as its image lies on its side: 400 x 500
    (tmp_path / "said.jsonl").write_text("".join(json.dumps({"text": f"<answer>{s}</answer>"}) + "\n" for s in said))
    given = {"--benchmark": "records", "--data": tmp_path / "held.json", "--predictions": tmp_path / "said.jsonl"}
    given |= {"--config": tmp_path / "config.yaml", "--out": tmp_path / "out"}
    assert main([str(word) for pair in given.items() for word in pair]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["miou"] == 1.0 and result["files"]["coordinates"] == "pixel"


def test_pixels_of_stored_images_are_not_compared_with_turned_ones(tmp_path: Path) -> None:
    (tmp_path / "lisa.json").write_text(json.dumps([{"image_path": "b.jpg", "instruction": "x", "boxes": [PIXELS]}]))
    with pytest.raises(ValueError, match="pixels of its images as stored; expected --data.exif=ignore, got apply"):
        read_items("lisa_val", tmp_path / "lisa.json", None, None, DataConfig(exif="apply"))
