"""What a scan costs: MIG-Bench's size in less than two seconds, and time linear in the number of records."""

import json
import random

import pytest
from PIL import Image
from speed import is_linear, within

from univg_fast.data.scan import scan

COUNTS = {  # task -> (questions, images of each), as MIG-Bench has them
    "diff": (528, 2), "view_diff": (94, 2), "common_object": (816, 4), "object_tracking": (550, 6),
    "multi_view": (288, 4), "region": (1203, 4), "refer_grounding": (99, 2), "group_grounding": (499, 4),
    "reasoning": (101, 2), "correspondence": (117, 2),
}  # fmt: skip
IMAGES = 5887


@pytest.fixture(scope="module")
def benchmark_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mig")
    Image.new("RGB", (64, 48)).save(folder / "0.jpg")
    content = (folder / "0.jpg").read_bytes()
    for i in range(1, IMAGES):
        (folder / f"{i}.jpg").write_bytes(content)
    rng, rows = random.Random(0), []
    for task, (number, images) in COUNTS.items():
        for _ in range(number):
            (x1, x2), (y1, y2) = (sorted(rng.sample(range(1001), 2)) for _ in "xy")
            rows.append({
                "task": task, "images": [f"{rng.randrange(IMAGES)}.jpg" for _ in range(images)], "need_format": True,
                "question": "Locate the object of the first image in the second image.", "additional_info": "Image-2",
                "answer": [x1 / 1000, y1 / 1000, x2 / 1000, y2 / 1000],
            })  # fmt: skip
    (folder / "mig.json").write_text(json.dumps(rows, indent=1))
    return folder / "mig.json"


def test_4295_records_of_mig_benchs_shape_load_in_two_seconds(benchmark_file):
    records, report = scan([benchmark_file])
    assert len(records) == 4295 and not report.bad and set(report.tasks) == set(COUNTS)
    assert report.formats == {str(benchmark_file): {"mig_bench": 4295}}
    assert within(2, lambda: scan([benchmark_file]), tries=5)
    wanted = {"diff": None, "region": 0}
    assert all(record.target_image == wanted.get(record.task, 1) for record in records)


@pytest.mark.parametrize("form", ["jsonl", "list"])
def test_time_is_linear_in_the_records(folder, form):
    def written(number):
        rows = [json.dumps(folder.stage2(id=f"r{i % 7}")) for i in range(number)]
        text = "\n".join(rows) if form == "jsonl" else "[" + ",".join(rows) + "]"  # a list of one line
        return folder.write(f"{number}.json", text)

    paths = {number: written(number) for number in (1_000, 8_000)}
    assert is_linear(lambda number: scan([paths[number]]), *paths, slack=2.5)
