"""A real browser, driven through two pipes by the DevTools protocol: a page is clicked, typed into and read."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BROWSER = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --remote-debugging-pipe"
WAIT_S = 90.0


def high(pipe: tuple[int, int]) -> list[int]:
    """A pipe's ends at numbers from 10 on: below, the shell could overwrite one with the other."""
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipe]
    for end in pipe:
        os.close(end)
    return ends


class Page:
    """`address` in a browser whose profile lies in `folder`. Chromium reads commands from 3 and answers on 4."""

    def __init__(self, address: str, folder: Path) -> None:
        (theirs_in, self._out), (self._in, theirs_out) = high(os.pipe()), high(os.pipe())
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        flags = [*FLAGS.split(), "--window-size=1000,1600", f"--user-data-dir={folder}"]
        command = ["bash", "-c", script, str(BROWSER), *flags]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), **quiet)
        for end in (theirs_in, theirs_out):
            os.close(end)
        self._number, self._rest, self._session = 0, b"", None
        target = self.call("Target.createTarget", url=address)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (reply := self._reply()).get("id") != self._number:
            pass  # an event
        assert "error" not in reply, reply
        return reply["result"]

    def _reply(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], WAIT_S)[0], "the browser says nothing"
            more = os.read(self._in, 1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def value(self, script: str) -> Any:
        """Of an expression in JavaScript."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str) -> Any:
        """The expression's value, once that is true."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if found := self.value(script):
                return found
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}; the page says: {self.value('document.body.innerText')}")

    def upload(self, selector: str, files: Sequence[Path]) -> None:
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")["result"]["objectId"]
        self.call("DOM.setFileInputFiles", objectId=found, files=[str(path) for path in files])

    def type(self, selector: str, text: str) -> None:
        self.value(f"document.querySelector({selector!r}).focus()")
        self.call("Input.insertText", text=text)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
