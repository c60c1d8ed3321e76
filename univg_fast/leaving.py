"""How a process ends: not of its console; with which last words, there and in torchrun's report; without hanging."""

from __future__ import annotations

import dis
import io
import json
import os
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn, TextIO

SHOW_CURSOR = b"\x1b[?25h"


class _Lasting:
    """A stream that takes what it is given, also where nobody is there any more who could read it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def ignore_lost_console() -> None:
    """From now on nothing ends of a print into a pipe whose reader died, a closed terminal, or a file on a full disk.

    Ctrl-C ends the `tee` behind a run before the run itself has saved.
    """
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:  # None: closed from the start
            setattr(sys, name, _Lasting(stream))


def keep_lines_whole() -> None:
    """From now on a line that is printed is one write.

    torchrun starts `python -u`: there each word and each line's end is one, and lines of ranks that speak at the same
    time mix.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)


def is_own_check(error: BaseException) -> bool:
    """Whether a `raise` of this package made it; not a library, nor a call or an operation that went wrong here."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    if step is None:
        return False
    own = step.tb_frame.f_globals.get("__name__", "").startswith("univg_fast.")
    return own and step.tb_frame.f_code.co_code[step.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def leave_with(last_words: str, is_culprit: bool = True) -> NoReturn:
    """End this process with code 1; torchrun ends the others. Not a culprit: another rank's words are the report's."""
    if last_words:
        print(last_words, file=sys.stderr, flush=True)
    if last_words and is_culprit:
        tell_torchrun(last_words)
    else:
        time.sleep(1)  # torchrun ends all ranks when the first one leaves, and blames that one: be later
    exit_now(1)


def tell_torchrun(message: str) -> None:
    """Leave the message where torchrun looks for it, so that its own report at the end names the cause."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with suppress(OSError), open(path, "w") as file:
            json.dump({"message": {"message": message, "extraInfo": extra}}, file)


def exit_now(code: int) -> NoReturn:
    """Leave without the interpreter's own end: gloo's threads can abort there, a broken group can hang."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    show_cursor()
    os._exit(code)


def show_cursor() -> None:
    """A progress bar that is under way hides it."""
    if os.isatty(1):
        with suppress(OSError):
            os.write(1, SHOW_CURSOR)
