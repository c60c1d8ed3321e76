"""From the configuration to batches: entries with weights and systems, in several formats, as training reads them."""

import json

import torch

from univg_fast.config import load_config
from univg_fast.data.boxtext import boxes_in
from univg_fast.train.making import make_loader, total_steps
from univg_fast.train.setup import load_policy, prepare

from .examples import ROWS


def test_entries_of_several_formats_reach_the_batches(folder, capsys):
    sft = folder.write("sft.jsonl", "\n".join(map(json.dumps, ROWS["univg_r1_stage1"] + ROWS["alpaca"])))
    more = folder.write("more.json", json.dumps(ROWS["vlm_r1"]))
    grpo = folder.write("grpo.jsonl", "\n".join(map(json.dumps, ROWS["ms_swift"] + ROWS["easy_r1"])))
    held_out = folder.write("eval.json", json.dumps(ROWS["lisa"] + ROWS["mig_bench"]))
    entries = json.dumps([{"path": str(sft), "weight": 0.5}, {"path": str(more), "weight": 2}])
    config = load_config([
        "--config=demo", "--data.builtin=null", f"--data.sft={entries}", f"--data.grpo=[{grpo}]",
        f"--data.eval=[{held_out}]", "--data.answer_style=bbox_2d", "--data.prompt_template=qwen2_vl",
        "--sft.per_step_samples=2", "--sft.max_steps=null", "--sft.num_train_epochs=2",
    ])  # fmt: skip
    inputs = prepare(config, folder.path)
    assert {use: len(records) for use, records in inputs.records.items()} == {"sft": 6, "grpo": 4, "eval": 4}
    assert {record.box for records in inputs.records.values() for record in records} == {(0, 0, 500, 250)}
    told = capsys.readouterr().out
    assert f"{more}: vlm_r1 2" in told and f"{held_out}: lisa 1, mig_bench 3" in told and "JSON list" in told
    assert "examples" in json.loads((folder.path / "data_report.json").read_text())["sft"]
    mix = inputs.records["sft"].mix
    assert mix.epoch == 6 == 4 * 0.5 + 2 * 2 and total_steps("sft", config, mix.epoch) == 6
    model = load_policy(config, inputs.processor, config.model.path, torch.device("cpu"))
    with make_loader("sft", config, inputs, model) as loader:
        samples = [sample for step in range(3) for sample in loader.batch(step).samples]
    ids = [sample.record.source for sample in samples]
    assert len(samples) == 6 and sum("more.json" in source for source in ids) == 4
    for sample in samples:
        text = inputs.processor.tokenizer.decode(sample.response_ids)
        assert boxes_in(text, 2)[-1].numbers == (0, 0, 500, 250) and '"bbox_2d"' in text
