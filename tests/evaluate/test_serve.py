"""The page of --serve as a person uses it, in a real browser; skipped without gradio or Chromium."""

from __future__ import annotations

import importlib.util
import io
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import BROWSER, Page
from PIL import Image

from tests.torchrun import free_port
from univg_fast.predict.__main__ import main

BESIDE = Path(sys.prefix) / "demo"  # where `make setup` puts gradio: it wants another Pillow than CI proves
SAID = "<think>The cup is in Image-2.</think>\n<answer>(100,200),(500,700)</answer>"
RED = (216, 31, 42)


@pytest.fixture(scope="module")
def model(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL that says SAID, whatever it is asked: that is one token, and the layers add nothing."""
    from transformers import AutoTokenizer

    from univg_fast.model import load_model

    folder = tmp_path_factory.mktemp("says")
    tokenizer, net = AutoTokenizer.from_pretrained(small / "model"), load_model(str(small / "model"))
    tokenizer.add_tokens([SAID])
    net.resize_token_embeddings(len(tokenizer))
    said, end = tokenizer.convert_tokens_to_ids([SAID, "<|im_end|>"])
    embedding, norm = net.get_input_embeddings().weight, net.model.language_model.norm.weight
    assert embedding is net.get_output_embeddings().weight, "a logit is the product of two embeddings"
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        embedding[:, 0], embedding[:, 1] = 3.0, 0.0
        embedding[said, :2] = torch.tensor([9.0, 9.0])  # the most with any other token: 27 to 9
        embedding[end, 1], norm[1] = -9.0, -1.0  # behind `said`: 27 + 81; said itself 81 - 81
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(start: Any, model: Path) -> Iterator[str]:
    if not (BESIDE / "gradio").is_dir() and importlib.util.find_spec("gradio") is None:
        pytest.skip("no gradio: `make setup` puts it beside the environment, `pip install 'gradio>=6'` into it")
    port = free_port()
    given = ["--model", model, "--evaluate.max_completion_length=6", "--data.max_pixels=12544"]
    process = start("-m", "univg_fast.predict", *given, "--serve", "--port", port, paths=[BESIDE])
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 400
    while True:
        try:
            urllib.request.urlopen(address, timeout=60).read()
            break
        except OSError:
            assert process.poll() is None, "the page's process has ended"
            assert time.monotonic() < deadline, "the page does not come"
            time.sleep(0.3)
    yield address
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_images_are_put_a_question_asked_and_reasoning_and_boxes_seen(address: str, tmp_path: Path) -> None:
    for name in ("first.png", "second.png"):
        Image.new("RGB", (90, 60), "white").save(tmp_path / name)
    page = Page(address, tmp_path / "profile")
    try:
        page.wait("document.querySelector('input[type=file]') && [...document.querySelectorAll('button')].length")
        ask = "[...document.querySelectorAll('button')].find(b => b.innerText.trim() == 'Ask')"
        page.wait(f"!!{ask}")
        page.value(f"{ask}.click()")
        page.wait("document.body.innerText.includes('Put at least one image, and a question.')")
        page.upload("input[type=file]", [tmp_path / "first.png", tmp_path / "second.png"])
        page.wait("/first/.test(document.body.innerText) && /second/.test(document.body.innerText)")
        page.type("textarea[placeholder^=Find]", "Where is the cup?")
        page.value(f"{ask}.click()")
        page.wait("[...document.querySelectorAll('textarea')].some(t => t.value == 'The cup is in Image-2.')")
        page.wait("document.body.innerText.includes('[100, 200, 500, 700]')")
        assert page.value("document.body.innerText.includes('[9, 12, 45, 42]')"), "the box in pixels of its image"
        drawn = page.wait("[...document.images].filter(i => i.naturalWidth > 700).map(i => i.src)[0]")
        hosts = page.value("performance.getEntriesByType('resource').map(e => new URL(e.name).hostname)")
        assert set(hosts) <= {"127.0.0.1", ""}, "something comes from elsewhere"
    finally:
        page.close()
    sheet = Image.open(io.BytesIO(urllib.request.urlopen(drawn, timeout=60).read())).convert("RGB")
    colours = {x for x in range(sheet.width) for y in range(sheet.height) if near(sheet.getpixel((x, y)))}
    assert min(colours) > sheet.width / 2, "the box is not in the second image only"


def near(pixel: Any) -> bool:
    """Red, as far as the page's picture format keeps it."""
    return all(abs(a - b) < 40 for a, b in zip(pixel, RED, strict=True))


@pytest.mark.slow
def test_nobody_else_on_the_network_reaches_the_page(address: str) -> None:
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", port)) != 0  # it would, were it bound to all addresses


def test_a_port_that_is_taken_and_gradio_that_is_not_there(small: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["--model", str(small / "model"), "--serve"]) == 1
    assert "pip install 'gradio>=6'" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "gradio", pytest)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        assert main(["--model", str(small / "model"), "--serve", "--port", str(held.getsockname()[1])]) == 1
    assert "is taken on 127.0.0.1" in capsys.readouterr().err
