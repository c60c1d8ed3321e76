"""Images of records that are missing, damaged or odd: found by the scan, or by the decoder at the latest."""

import pytest
from PIL import Image

from univg_fast.data.errors import DecodeError
from univg_fast.data.images import load_images
from univg_fast.data.records import read_records


def only_bad(path, kind, line):
    """The one bad record of a file, checked for its kind and place."""
    _, bad = read_records(path)
    assert [entry.kind for entry in bad] == [kind]
    assert bad[0].source == f"{path}:{line}"
    assert bad[0].message.startswith(f"{path}:{line}: ")
    return bad[0].message


def test_a_missing_image(folder):
    path = folder.jsonl(folder.stage2(), folder.stage2(images=["a.png", "gone.png"]))
    assert "gone.png does not exist" in only_bad(path, "missing", 2)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image(folder, content):
    folder.write("b.png", content)
    assert "b.png" in only_bad(folder.jsonl(folder.stage2()), "decode", 1)


def test_an_image_of_many_records_is_opened_once(folder, monkeypatch):
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real(path))
    records, _ = read_records(folder.jsonl(*[folder.stage2()] * 5))
    assert len(records) == 5 and sorted(opened) == sorted(records[0].images)


def test_an_image_that_is_a_folder(folder):
    (folder.path / "sub").mkdir()
    only_bad(folder.jsonl(folder.stage2(images=["a.png", "sub"])), "decode", 1)


def test_an_image_too_long_and_narrow(folder):
    Image.new("L", (402, 2)).save(folder.path / "b.png")
    assert "402x2" in only_bad(folder.jsonl(folder.stage2()), "aspect", 1)
    Image.new("L", (400, 2)).save(folder.path / "b.png")
    assert not read_records(folder.jsonl(folder.stage2()))[1]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40 - 1)
    assert "more than Pillow's MAX_IMAGE_PIXELS" in only_bad(folder.jsonl(folder.stage2()), "decode", 1)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_passes_the_scan_and_fails_in_the_decoder(folder, suffix):
    from univg_fast.data.builtin.pictures import load_pictures

    name = f"cut.{suffix}"
    load_pictures()[0].save(folder.path / name)
    whole = (folder.path / name).read_bytes()
    folder.write(name, whole[: len(whole) // 2])
    path = folder.jsonl(folder.stage2(images=["a.png", name]))
    (record,), bad = read_records(path)
    assert not bad
    with pytest.raises(DecodeError, match=f"{path}:1: cannot decode the image .*{name}") as caught:
        load_images(record)
    assert caught.value.kind == "decode" and caught.value.path == str(folder.path / name)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "L", "1", "CMYK", "I;16"])
def test_every_mode_decodes_to_rgb_at_its_own_size(folder, mode):
    image = Image.new("RGB", (60, 40), "teal").convert("L").convert("I;16") if mode == "I;16" else None
    image = image or Image.new("RGB", (60, 40), "teal").convert(mode)
    image.save(folder.path / "b.tiff")
    (record,), _ = read_records(folder.jsonl(folder.stage2(images=["a.png", "b.tiff"])))
    decoded = load_images(record)[1]
    assert decoded.mode == "RGB" and decoded.size == (60, 40)


def test_a_rotation_in_exif_is_not_applied(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to display
    Image.new("RGB", (60, 40)).save(folder.path / "turned.jpg", exif=exif)
    (record,), _ = read_records(folder.jsonl(folder.stage2(images=["a.png", "turned.jpg"])))
    assert load_images(record)[1].size == (60, 40)
