"""A teacher behind an OpenAI-compatible endpoint: POST {url}/chat/completions with the images as data URLs."""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from univg_fast.cot.filters import Candidate, score
from univg_fast.cot.templates import image_name
from univg_fast.data.coordinates import Size, smart_resize
from univg_fast.data.images import load_images
from univg_fast.data.prompts import instruction, right_answer
from univg_fast.structs import Record

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
HOPELESS = (401, 403, 404, 405)  # whatever the record
LONGEST_WAIT = 60.0  # seconds between two attempts
MAX_ANSWER_BYTES = 4 << 20
MANNERS = (
    " Boxes are integers from 0 to 1000 of their own image's width and height{form}, from the upper left to the lower"
    " right corner."
)
FORM = ", as (x1,y1),(x2,y2)"  # for instructions that leave it open; a second form beside theirs would be obeyed, too
REASON = (
    " In <think>, say what the question asks for, describe the objects of each image that matter, compare them across"
    " the images, and end with the image that holds the target, in these words: The target is in Image-k. Write no"
    " coordinates and no numbers of pixels inside <think>."
)
HINT = (
    " The right answer is known: {answer}. Explain how one finds it from the images and the question alone; do not"
    " say that it was given, and write its numbers in <answer> only."
)


class TeacherError(RuntimeError):
    """One request failed for good. The next record may succeed."""


class TeacherRefused(ValueError):
    """The endpoint will answer nothing of ours: wrong key, model or address."""


@dataclass(frozen=True)
class Teacher:
    """Where the teacher is and how it is asked. Any thread may ask."""

    url: str  # up to and without /chat/completions, as …/v1
    model: str
    key: str | None = None
    temperature: float = 1.0
    max_tokens: int = 1024
    timeout: float = 120.0  # seconds for one answer
    attempts: int = 5
    wait: float = 1.0  # seconds before the second attempt; doubled for each further one
    seed: int = 0
    hint: bool = False  # show the teacher the right answer, as UniVG-R1 does; its own answers then prove nothing
    max_pixels: int = 1003520  # of an image as it is sent
    exif: str = "ignore"

    def candidates(self, record: Record, number: int) -> tuple[list[Candidate], list[Size]]:
        """`number` completions of a record, scored against a direct answer; and the sizes of its images.

        TeacherError where a request fails after all attempts, DecodeError for a broken image.
        """
        images = load_images(record, self.exif)
        pictures = [self._picture(image) for image in images]
        direct = None
        if not self.hint:
            said = self.ask(pictures, question_for(record, thinks=False), temperature=0.0, seed=self.seed)
            direct = score(said, record)
        found = []
        for i in range(number):
            asked = question_for(record, thinks=True, hint=self.hint)
            said = self.ask(pictures, asked, self.temperature, seed=self.seed + i)
            candidate = Candidate(said.strip(), direct=direct)
            found.append(candidate if self.hint else replace(candidate, score=score(candidate.text, record)))
        return found, [image.size for image in images]

    def ask(self, pictures: Sequence[str], text: str, temperature: float, seed: int) -> str:
        """The text of one completion."""
        content: list[dict[str, Any]] = []
        for i, picture in enumerate(pictures):
            content.append({"type": "text", "text": f"{image_name(i)}:"})
            content.append({"type": "image_url", "image_url": {"url": picture}})
        content.append({"type": "text", "text": text})
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": temperature,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }
        return self._post(json.dumps(asked).encode())

    def _post(self, body: bytes) -> str:
        problem = ""
        for attempt in range(self.attempts):
            try:
                return _text_of(self._answer(body))
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} {_brief(error)}"
                if error.code in HOPELESS:
                    raise TeacherRefused(f"--teacher {self.url}, model {self.model}: refused with {problem}") from None
                if error.code not in RETRIED:
                    raise TeacherError(f"{self.url}: {problem}") from None
                told = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
                # no connection, a time-out, or an answer that is cut or none
                problem, told = f"{type(error).__name__}: {error}", None
            if attempt + 1 < self.attempts:
                pause = told if told is not None else self.wait * 2**attempt * random.uniform(0.5, 1.0)
                time.sleep(min(pause, LONGEST_WAIT))
        raise TeacherError(f"{self.url}: no answer after {self.attempts} attempts; the last: {problem}")

    def _answer(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.url.rstrip("/") + "/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return json.loads(response.read(MAX_ANSWER_BYTES))

    def _picture(self, image: Image.Image) -> str:
        """An image as a data URL, no larger than the teacher's pixel budget; its shape stays, and so do its boxes."""
        if image.width * image.height > self.max_pixels:
            image = image.resize(smart_resize(image.size, max_pixels=self.max_pixels), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=92)
        return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def question_for(record: Record, thinks: bool, hint: bool = False) -> str:
    """What the teacher is asked: the record's question, the form of its answer, and how to reason."""
    form = instruction(replace(record, cot=thinks)) or " Output only the bounding box."
    text = record.question + form + MANNERS.format(form="" if "x1" in form else FORM) + (REASON if thinks else "")
    answer = right_answer(record)
    return text + (HINT.format(answer=answer) if hint else "")


def _text_of(answer: Any) -> str:
    text = answer["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError(f"expected a text, got {type(text).__name__}")
    return text.encode(errors="replace").decode()  # half a surrogate pair is no text that a file can hold


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; a date there is left alone."""
    return float(header) if header is not None and header.strip().isdigit() else None


def _brief(error: urllib.error.HTTPError) -> str:
    return " ".join(error.read(300).decode(errors="replace").split())[:200]
