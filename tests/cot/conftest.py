"""Records with boxes in two images, files of them, and a teacher on this machine: a real HTTP server."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from univg_fast.cot.__main__ import main

SIZES = ((120, 80), (90, 110))
GOOD = "<think>The cup is in Image-1 and a dog in Image-2. The target is in Image-{k}.</think><answer>{box}</answer>"


def box_of(index: int) -> tuple[int, int, int, int]:
    return 300 + index, 240 + 2 * index, 700 + index, 580 + 2 * index


def write_boxes(folder: Path, number: int) -> Path:
    """A file of `number` records over two images, in the project's own format; record i asks for item i."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for k, (width, height) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"{k}.png")
    rows = [
        {
            "id": f"r{i}",
            "task": "refer",
            "images": ["0.png", "1.png"],
            "question": f"Find item {i}.",
            "targets": [{"box": list(box_of(i)), "image": i % 2, "label": "red cup"}],
        }
        for i in range(number)
    ]
    path = folder / "boxes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shown(box: tuple[int, int, int, int]) -> str:
    return "({},{}),({},{})".format(*box)


class Stub(ThreadingHTTPServer):
    """Answers as `reply(request) -> text`; `trouble` says what goes wrong first: (status or "cut" or "slow")."""

    daemon_threads = True

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], str] = helpful
        self.trouble: list[int | str] = []
        self.answers = 10**9  # requests that are answered; those after them wait for `gate`
        self.gate = threading.Event()
        self.waiting = 0  # requests at the gate
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: Counter[int | str] = Counter()
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            trouble = self.server.trouble.pop(0) if self.server.trouble else 200
            self.server.statuses[trouble] += 1
            self.server.requests.append(asked | {"path": self.path})
            self.server.headers.append(dict(self.headers))
            waits = len(self.server.requests) > self.server.answers
            self.server.waiting += waits
        if waits:
            self.server.gate.wait(300)
        if trouble == "slow":
            self.connection.settimeout(300)
            self.rfile.read(1)  # until the client has had enough of it, and leaves
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": self.server.reply(asked)}}]})
        status = trouble if isinstance(trouble, int) else 200
        try:
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode()[: len(body) // 2 if trouble == "cut" else None])
        except OSError:
            pass  # the client has left, as it should when we are slow

    def log_message(self, *_: object) -> None:
        pass


def helpful(asked: dict[str, Any]) -> str:
    """A poor direct answer; with reasoning, four candidates by their seed: leaking, lost, no better, right."""
    text = asked["messages"][0]["content"][-1]["text"]
    found = re.search(r"Find item (\d+)\.", text)
    assert found
    index = int(found[1])
    x1, y1, x2, y2 = box_of(index)
    k, poor = index % 2 + 1, (x1, y1, x1 + (x2 - x1) // 2, y2)  # half of the box: IoU 0.5
    if "<think>" not in text:
        return shown(poor)
    return (
        GOOD.format(k=k, box=shown(box_of(index))).replace("a dog", f"a dog at {shown(box_of(index))}"),
        GOOD.format(k=3 - k, box=shown(box_of(index))),
        GOOD.format(k=k, box=shown(poor)),
        GOOD.format(k=k, box=shown((x1 + 10, y1, x2, y2))),
    )[asked["seed"] % 4]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name(path.name + ".summary.json").read_text())


def teach(stub: Stub, boxes: Path, out: Path, *more: str) -> int:
    asked = ["--teacher", stub.url, "--model", "t", "--candidates", "4", "--timeout", "60", *more]
    return main(["build", "--data", str(boxes), "--out", str(out), *asked])


def forget_image(path: Path, *which: int) -> None:
    """The first target of these records no longer says its image."""
    lines = rows(path)
    for i in which:
        del lines[i]["targets"][0]["image"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    return write_boxes(tmp_path / "data", 6)
