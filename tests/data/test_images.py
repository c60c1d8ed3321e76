"""What every kind of image file becomes, the same for the scan and for the model; each decoded once for a prompt."""

import numpy as np
import pytest
from PIL import Image

from univg_fast.data.images import Header, Headers, load_image, load_images, probe
from univg_fast.data.loader import SampleLoader
from univg_fast.data.samples import make_processor, make_sample
from univg_fast.data.scan import scan


def pixel(path, at=(0, 0), **options):
    return load_image(str(path), **options).getpixel(at)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_lies_on_white(tmp_path, mode):
    image = Image.new("RGBA", (60, 40), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (30, 0, 60, 40))
    image.paste((0, 0, 0, 128), (0, 20, 30, 40))
    if mode == "PA":
        image = image.quantize(16).convert("PA") if mode == "PA" else image
    path = tmp_path / "x.png"
    image.convert(mode).save(path) if mode != "PA" else Image.merge("RGBA", image.convert("RGBA").split()).save(path)
    assert pixel(path) == (255, 255, 255)
    assert pixel(path, (40, 0)) == ((29,) * 3 if mode == "LA" else (0, 0, 255))
    if mode != "PA":
        assert pixel(path, (0, 30)) == (127,) * 3


def test_a_palette_is_looked_up_and_its_transparent_colour_lies_on_white(tmp_path):
    image = Image.new("P", (60, 40))
    image.putpalette([255, 0, 0, 0, 128, 128])
    image.paste(1, (30, 0, 60, 40))
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=0)
    assert pixel(tmp_path / "opaque.png") == (255, 0, 0)
    assert pixel(tmp_path / "clear.png") == (255, 255, 255)
    for name in ("opaque", "clear"):
        assert pixel(tmp_path / f"{name}.png", (40, 0)) == (0, 128, 128)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_keep_their_upper_8(tmp_path, suffix):
    values = np.linspace(0, 65535, 60 * 40).astype(np.uint16).reshape(40, 60)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(np.asarray(load_image(str(tmp_path / f"x.{suffix}"))), expected)


def test_32_bits_that_hold_8_are_kept(tmp_path):
    Image.fromarray(np.full((40, 60), 200, np.int32)).save(tmp_path / "x.tiff")
    assert pixel(tmp_path / "x.tiff") == (200, 200, 200)


def test_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "x.gif") == (255, 0, 0)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation(tmp_path, value, suffix):
    """Applied, the picture is that of Pillow's exif_transpose, and the header tells its size; ignored, the stored one.

    A TIFF is turned by Pillow itself.
    """
    from PIL import ImageOps

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 60, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = value
    path = tmp_path / f"x.{suffix}"
    image.save(path, exif=exif)
    with Image.open(path) as stored:
        upright = ImageOps.exif_transpose(stored).convert("RGB")
        stored = stored.convert("RGB")
    header = probe(str(path))
    assert isinstance(header, Header) and header.size == (upright.size if suffix == "tiff" else (60, 40))
    for how, expected in (("apply", upright), ("ignore", stored)):
        loaded = load_image(str(path), how)
        assert header.shown(how) == loaded.size == expected.size
        assert np.array_equal(np.asarray(loaded), np.asarray(expected))


def turned(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(folder.path / "b.jpg", exif=exif)
    return folder.stage2(images=["a.png", "b.jpg"], answer=[0, 0, 20, 30], target_image=1)


def test_boxes_in_pixels_are_those_of_the_image_as_it_is_used(folder, tokenizer):
    entry = {"path": str(folder.jsonl(turned(folder))), "coordinates": "pixel"}
    (stored,), report = scan([entry])
    assert stored.box == (0, 0, 333, 750) and "1 records have images that EXIF turns" in report.warnings[0]
    (upright,), report = scan([entry], exif="apply")
    assert upright.box == (0, 0, 500, 500) and not report.warnings
    sample = make_sample(upright, make_processor(tokenizer, exif="apply"), with_response=False)
    assert sample.sizes == ((60, 40), (40, 60))


def test_an_image_that_stands_twice_is_decoded_once(folder, monkeypatch):
    (record,), _ = scan([folder.jsonl(folder.stage2(images=["a.png", "a.png"]))])
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real(path))
    one, two = load_images(record)
    assert len(opened) == 1 and np.array_equal(np.asarray(one), np.asarray(two))


def test_images_are_decoded_once_per_prompt_and_in_workers(folder, processor, monkeypatch):
    """However many responses a prompt has, and in the next epoch, too: the sample holds the pixels."""
    import threading

    import univg_fast.data.images as module

    records, _ = scan([folder.jsonl(*[folder.stage2(id=str(i)) for i in range(4)])])
    decoded = []
    original = module.load_image

    def counting(path, *rest):
        decoded.append((path, threading.current_thread().name))
        return original(path, *rest)

    monkeypatch.setattr(module, "load_image", counting)
    with SampleLoader(records, processor, 2, seed=0, with_response=False, num_workers=2, prefetch=0) as loader:
        for step in range(4):
            batch = loader.batch(step)
            assert len(batch.samples) == 2 and not batch.bad
    assert len(decoded) == 4 * 2, "four records of two images, in two epochs"
    assert all(name.startswith("samples") for _, name in decoded)


def test_headers_remember_a_bounded_number(folder):
    from concurrent.futures import ThreadPoolExecutor

    headers = Headers(limit=1)
    with ThreadPoolExecutor(2) as pool:
        headers.look_at([str(folder.path / name) for name in ("a.png", "b.png")], pool)
    assert len(headers._known) == 1
    assert headers[str(folder.path / "a.png")] == Header((60, 40))
