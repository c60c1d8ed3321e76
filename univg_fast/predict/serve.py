"""`--serve`: a page at 127.0.0.1 on which images are put, a question asked, and reasoning and boxes seen."""

from __future__ import annotations

import os
import socket
from typing import Any

from PIL import Image

from univg_fast.config import Config
from univg_fast.predict.questions import Ask, asker, item_of, sheet

HOST = "127.0.0.1"
COLUMNS = ["image", "box of 1000", "box in px"]


def serve(model: str, config: Config, port: int) -> None:
    """Until the process is ended. ValueError without gradio, and for a port that is taken."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: nothing is told to anybody
    try:
        import gradio
    except ImportError:
        raise ValueError("--serve: expected gradio to be installed; run pip install 'gradio>=6'") from None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if probe.connect_ex((HOST, port)) == 0:
            raise ValueError(f"--port: {port} is taken on {HOST}; name another one")
    page(gradio, asker(model, config), config.data.exif).launch(server_name=HOST, server_port=port, share=False)


def page(gradio: Any, ask: Ask, exif: str) -> Any:
    """gradio's Blocks. No font or script of it comes from elsewhere."""

    def answered(files: list[str] | None, question: str, reasoning: bool) -> tuple[Image.Image, str, list[list[str]]]:
        if not files or not (question or "").strip():
            raise gradio.Error("Put at least one image, and a question.", print_exception=False)
        (found,) = ask([item_of("page", "the page", list(files), question, reasoning)])
        if found["error"]:
            raise gradio.Error(found["error"], print_exception=False)
        rows = [[str(one["image"] or "not named"), str(one["box"]), str(one["box_px"])] for one in found["boxes"]]
        return sheet(found, exif), found["thought"] or found["text"], rows

    with gradio.Blocks(title="univg-fast", analytics_enabled=False) as blocks:
        gradio.Markdown("## Where is it?\nImages are counted in the order in which they are put.")
        files = gradio.File(label="Images", file_count="multiple", file_types=["image"])
        question = gradio.Textbox(label="Question", placeholder="Find the object of image 1 in image 2.")
        reasoning = gradio.Checkbox(value=True, label="With reasoning")
        button = gradio.Button("Ask", variant="primary")
        picture = gradio.Image(show_label=False, interactive=False, buttons=["download", "fullscreen"])
        thought = gradio.Textbox(label="Reasoning", lines=4, interactive=False)
        boxes = gradio.Dataframe(headers=COLUMNS, label="Answer", interactive=False)
        button.click(answered, [files, question, reasoning], [picture, thought, boxes], api_name="ask")
    return blocks
