"""The task for lmms-eval: its file names functions that are there, and its figures are those of our own command.

With lmms-eval installed it is run by that package, too; otherwise by what the package's task guide says of such files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from univg_fast.data.coordinates import smart_resize
from univg_fast.evaluate import __main__ as command
from univg_fast.evaluate.lmms_eval import utils

FOLDER = Path(utils.__file__).parent
ANSWERS = ["<answer>(100,100),(500,500)</answer>", "<think>Image-2</think><answer>(100,100),(500,300)</answer>", "no"]


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: getattr(utils, loader.construct_scalar(node).split(".")[1]))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: Any) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 40)).save(tmp_path / "images" / name)
    tasks = ["diff", "diff", "reasoning", "view_diff", "diff"]
    entries = [
        {"task": task, "images": ["a.png", "b.png"], "question": "<image><image>Where?", "answer": [100, 100, 500, 500],
         "additional_info": "", "need_format": True} for task in tasks
    ]  # fmt: skip
    entries[4]["answer"] = None
    (tmp_path / "mig.json").write_text(json.dumps(entries))
    monkeypatch.setenv("MIG_BENCH", str(tmp_path / "mig.json"))
    monkeypatch.setenv("MIG_BENCH_IMAGES", str(tmp_path / "images"))
    return tmp_path


class Table(list):
    """What lmms-eval hands over, as far as the task looks at it."""

    from_list = classmethod(lambda cls, rows: cls(rows))


def test_figures_are_those_of_our_command(bench: Path) -> None:
    config = yaml.load((FOLDER / "mig_bench.yaml").read_text(), Loader)
    docs = config["process_docs"](Table())
    ours = " First output the thinking process in <think> </think> tags"
    ours += " and then output the bounding box in <answer> </answer> tags."
    assert config["doc_to_text"](docs[0]) == "Where?" + ours
    assert config["doc_to_text"](docs[0], {"pre_prompt": "Q: ", "post_prompt": " A:"}) == "Q: Where? A:"
    assert [image.size for image in config["doc_to_visual"](docs[0])] == [(60, 40)] * 2
    texts = [ANSWERS[i % 3] for i in range(5)]
    rows = [config["process_results"](doc, [said]) for doc, said in zip(docs, texts, strict=True)]
    metrics = {one["metric"]: one["aggregation"] for one in config["metric_list"]}
    assert set(metrics) == set(rows[0])
    got = {name: aggregate([row[name] for row in rows]) for name, aggregate in metrics.items()}

    (bench / "said.jsonl").write_text(
        "".join(json.dumps({"index": i, "text": said}) + "\n" for i, said in enumerate(texts))
    )
    given = ["--benchmark", "mig_bench", "--data", bench / "mig.json", "--image-root", bench / "images"]
    assert (
        command.main([*map(str, given), "--predictions", str(bench / "said.jsonl"), "--out", str(bench / "out")]) == 0
    )
    want = json.loads((bench / "out" / "results.json").read_text())
    assert got["mig_bench_avg"] == 100 * want["macro"]["acc@0.5"] == pytest.approx(100 * (2 / 3 + 0 + 1) / 3)
    assert got["mig_bench_avg_miou"] == 100 * want["macro"]["miou"] and got["mig_bench_micro_acc_0_5"] == 60
    assert got["mig_bench_acc_static"] == 100 * want["tasks"]["diff"]["acc@0.5"]
    assert got["mig_bench_acc_gg"] != got["mig_bench_acc_gg"]  # NaN: there is no such sample


def test_boxes_of_a_model_that_counts_pixels_of_the_resized_image(bench: Path, monkeypatch: Any, capsys: Any) -> None:
    doc = utils.process_docs(Table())[0]
    assert "boxes are read in thousandths" in capsys.readouterr().err
    (width, height) = smart_resize((60, 40), 28, 3136, 12544)
    box = ", ".join(str(v * side / 1000) for v, side in zip((100, 100, 500, 500), (width, height) * 2, strict=True))
    said = [f"<answer>Image-1: [{box}]</answer>"]
    assert utils.process_results(doc, said)["mig_bench_avg"]["iou"] < 0.1
    monkeypatch.setenv("MIG_BENCH_RESIZED", "3136,12544")
    assert utils.process_results(doc, said)["mig_bench_avg"]["iou"] == pytest.approx(1, abs=1e-9)
    utils.process_docs(Table())
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("MIG_BENCH_RESIZED", "3136")
    with pytest.raises(ValueError, match="expected MIN_PIXELS,MAX_PIXELS, two integers, got '3136'"):
        utils.process_docs(Table())


def test_an_image_that_is_not_there_counts_0_and_ends_nothing(bench: Path, capsys: Any) -> None:
    (bench / "images" / "b.png").unlink()
    (bench / "images" / "a.png").write_bytes(b"cut")
    docs = utils.process_docs(Table())
    told = capsys.readouterr().err
    assert "mig_bench: 1 images are not there, and their entries count 0: " in told and "b.png" in told
    assert [image.mode for image in utils.doc_to_visual(docs[0])] == ["RGB"] * 2
    row = utils.process_results(docs[0], ANSWERS)["mig_bench_avg"]
    assert (row["iou"], row["box"], row["fault"]) == (0, None, "no_box")


RUN = """
import json, sys
from lmms_eval.tasks import TaskManager
from lmms_eval import evaluator
found = evaluator.simple_evaluate(
    model="dummy", model_args="response=" + sys.argv[2], tasks=["mig_bench"], batch_size=1, bootstrap_iters=0,
    task_manager=TaskManager(include_path=sys.argv[1], include_defaults=False),
)
print("RESULT" + json.dumps({k: v for k, v in found["results"]["mig_bench"].items() if isinstance(v, float)}))
"""


def test_in_the_real_package(bench: Path) -> None:
    pytest.importorskip("lmms_eval", reason="of no extra: pip install lmms-eval")
    words = [sys.executable, "-c", RUN, str(FOLDER), "<answer>(100 100) [100, 100, 500, 500]</answer>"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.partition("RESULT")[2].splitlines()[0])
    named = {name.partition(",")[0]: value for name, value in found.items()}
    assert named["mig_bench_avg"] == pytest.approx(100 * (2 / 3 + 1 + 1) / 3)
    assert named["mig_bench_acc_reason"] == 100


def test_nothing_of_lmms_eval_is_imported() -> None:
    assert not [
        name for name, value in vars(utils).items() if isinstance(value, ModuleType) and "lmms" in value.__name__
    ]
    with pytest.raises(ValueError, match="set MIG_BENCH to the benchmark's file"):
        utils.process_docs(Table())
