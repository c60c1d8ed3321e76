"""The page of --serve, asked as a browser asks it; skipped where gradio is not installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from univg_fast.predict.__main__ import main

BROWSER = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(start: Any, small: Path) -> Iterator[str]:
    pytest.importorskip("gradio", reason="of the extra [demo]")
    port = free_port()
    given = ["--model", small / "model", "--evaluate.max_completion_length=6", "--data.max_pixels=12544"]
    process = start("-m", "univg_fast.predict", *given, "--serve", "--port", port)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=5).read()
            break
        except OSError:
            assert process.poll() is None, "the page's process has ended"
            time.sleep(0.3)
    yield address
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_question_is_answered_and_drawn(address: str, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    Image.new("RGB", (90, 60), "white").save(tmp_path / "a.png")
    client = Client(address, verbose=False)
    files = [handle_file(str(tmp_path / "a.png"))] * 2
    picture, thought, boxes = client.predict(files, "Where is it?", True, api_name="/ask")
    assert Image.open(picture).width > 2 * 360 and thought and boxes["headers"][0] == "image"
    with pytest.raises(Exception, match="Put at least one image"):
        client.predict([], "Where is it?", True, api_name="/ask")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_the_page_in_a_browser(address: str, tmp_path: Path) -> None:
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
    ]
    done = subprocess.run([str(BROWSER), *options, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert all(word in done.stdout for word in ("Where is it?", "With reasoning", "Question", "Ask")), done.stdout[
        :2000
    ]


def test_a_port_that_is_taken_and_gradio_that_is_not_there(small: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["--model", str(small / "model"), "--serve"]) == 1
    assert "pip install univg-fast[demo]" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "gradio", pytest)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        assert main(["--model", str(small / "model"), "--serve", "--port", str(held.getsockname()[1])]) == 1
    assert "is taken on 127.0.0.1" in capsys.readouterr().err
