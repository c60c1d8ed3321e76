"""Parquet with images inside: unpacked once, and written back without loss."""

import json
import os
import subprocess
import sys
from io import BytesIO

import pytest
from PIL import Image

from univg_fast.data.convert import convert
from univg_fast.data.scan import scan

from .examples import ROWS

BOX = (0, 0, 500, 250)


def picture(colour, form="PNG"):
    out = BytesIO()
    Image.new("RGB", (60, 40), colour).save(out, form)
    return out.getvalue()


@pytest.fixture
def parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet  # noqa: F811

    def write(rows, name="data.parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
        return tmp_path / name

    return write


def parquet_rows():
    images = [{"bytes": picture("teal"), "path": "x/one.png"}, {"bytes": picture("gold", "JPEG"), "path": None}]
    return {
        "easy_r1": {"problem": "<image><image>Where?", "answer": "[0, 0, 500, 250]", "images": images},
        "verl": ROWS["verl"][0] | {"images": images[:1]},
        "vlm_r1": {k: v for k, v in ROWS["vlm_r1"][0].items() if k != "image"} | {"image": images[0]},
    }


@pytest.mark.parametrize("name", ["easy_r1", "verl"])
def test_parquet_with_images_inside(parquet, tmp_path, name):
    row = parquet_rows()[name]
    path, cache = parquet([row] * 3), tmp_path / "cache"
    records, report = scan([path], cache_dir=str(cache))
    assert not report.bad and report.formats == {str(path): {name: 3}}
    assert [record.source for record in records] == [f"{path}:{line}" for line in (1, 2, 3)]
    assert records[0].box == BOX and len(records[0].images) == len(row["images"])
    assert Image.open(records[0].images[0]).getpixel((0, 0)) == (0, 128, 128)
    again, _ = scan([path], cache_dir=str(cache))
    assert again == records and len(os.listdir(cache)) == 1


@pytest.mark.parametrize("name", ["easy_r1", "verl", "vlm_r1"])
def test_parquet_there_and_back_without_loss(parquet, tmp_path, name, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = parquet_rows()[name]
    assert convert(parquet([row]), tmp_path / "own.jsonl", "univg_fast").bad == []
    assert convert(tmp_path / "own.jsonl", tmp_path / "back.parquet", name).bad == []
    assert pyarrow.parquet.read_table(tmp_path / "back.parquet").to_pylist() == [row]


def test_damaged_parquet_and_parquet_without_pyarrow(parquet, tmp_path, monkeypatch):
    path = parquet([parquet_rows()["verl"]])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not readable as parquet"):
        scan([path], cache_dir=str(tmp_path / "cache"))
    assert os.listdir(tmp_path / "cache") == [], "what is half done is not left behind"
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        scan([path], cache_dir=str(tmp_path / "cache"))


def test_rows_that_make_no_parquet(folder, tmp_path):
    """The message names OUT, the key and both rows, and no file beside it; what stands there stays."""
    pytest.importorskip("pyarrow")
    out = folder.write("out.parquet", "precious")
    gone = folder.write("gone.jsonl", json.dumps(folder.stage2(images=["a.png", "gone.png"])))
    mixed = folder.jsonl(folder.stage2(id=3), folder.stage2(id=4), folder.stage2(id="text"))
    kinds = "parquet holds one kind of value under id, and there is 3 in row 1 and 'text' in row 3; write .jsonl"
    for path, message in ((gone, f"the image {folder.path}/gone.png: No such file or directory"), (mixed, kinds)):
        with pytest.raises(ValueError) as caught:
            convert(path, out, "univg_r1_stage2")
        assert str(caught.value) == f"{out} cannot be written: {message}"
    assert out.read_text() == "precious"


@pytest.mark.parametrize("to", ["mig_bench", "verl", "easy_r1", "univg_fast"])
def test_keys_of_several_kinds_come_back_from_parquet(folder, tmp_path, to, monkeypatch):
    """MIG-Bench's additional_info is text here and a mapping there; mappings have keys of their own."""
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    infos = ["", "In Image-2.", {"target": 1}, {"image": 0, "more": {"deep": [1, "x"]}}, {}, 5, [1, [2]]]
    rows = [folder.stage2(task="diff", additional_info=info, need_format=True) for info in infos]
    assert convert(folder.jsonl(*rows), folder.path / "out.parquet", to).bad == []
    records, report = scan([folder.path / "out.parquet"])
    assert [record.extra["additional_info"] for record in records] == infos and not report.bad


def test_records_of_all_formats_in_one_table(folder, tmp_path, monkeypatch):
    """No row gets keys of another one."""
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [row for name in ROWS if name != "revos" for row in ROWS[name]]
    own, again = folder.path / "own.jsonl", folder.path / "again.jsonl"
    convert(folder.jsonl(*rows), own, "univg_fast")
    assert convert(own, folder.path / "own.parquet", "univg_fast").bad == []
    assert convert(folder.path / "own.parquet", again, "univg_fast").bad == []
    given, found = ([json.loads(line) for line in path.read_text().splitlines()] for path in (own, again))
    for row in (*given, *found):
        row["images"] = [os.path.basename(path) for path in row["images"]]
    assert [{k: v for k, v in row.items() if v is not None} for row in found] == given


def test_two_processes_unpack_one_parquet_file(parquet, tmp_path):
    path = parquet([parquet_rows()["verl"]] * 20)
    read = f"scan([{str(path)!r}], cache_dir={str(tmp_path / 'c')!r})"
    code = f"from univg_fast.data.scan import scan; print(len({read}[0]))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=400)[0].strip() for process in both] == ["20", "20"]
    assert len(os.listdir(tmp_path / "c")) == 1
