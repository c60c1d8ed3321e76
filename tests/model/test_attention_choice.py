"""`model.attention`: what runs here, what is refused and why, and that a library is called as it wants to be."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from tiny import FAMILIES, tiny_model

from univg_fast.config import Config
from univg_fast.config.schema import AttentionName
from univg_fast.data.samples import make_processor
from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.model import PackedModel, load_model
from univg_fast.model.attention import choose_attention, refuse_dropout
from univg_fast.model.attention.choose import AUTO, NAMES, TOLERANCE, obstacle, worst_error
from univg_fast.model.attention.libraries import LIBRARIES, Library, bottom_right_mask, installed
from univg_fast.model.attention.paths import path_attention, segment_attention
from univg_fast.packing.layout import FACES, PATH_FACES, build_layout
from univg_fast.packing.paths import PathLayout
from univg_fast.train.making import make_policy
from univg_fast.train.setup import Inputs

CPU, MODEL = torch.device("cpu"), (torch.bfloat16, 4, 2, 16)
SPANS = [(0, 10, [3, 5]), (18, 2, []), (20, 4, [1, 1, 6])]
MODELS = {"qwen2_vl_7b": (28, 4, 128), "qwen2_vl_2b": (12, 2, 128), "small": (8, 8, 64)}


def test_names_are_the_same_everywhere() -> None:
    assert get_args(AttentionName) == NAMES
    assert set(PATH_FACES) - {"paths"} == set(AUTO) == set(LIBRARIES)
    assert set(NAMES) - {"auto", "torch"} < set(FACES)


@pytest.mark.parametrize(("name", "face"), [("auto", "grouped"), ("torch", "grouped"), ("dense", "dense")])
def test_what_runs_on_a_cpu(name: str, face: str) -> None:
    choice = choose_attention(name, CPU, *MODEL)
    assert choice.face == face and choice.line.startswith(f"attention: {choice.name}")
    assert choice.name == ("torch" if name == "auto" else name)


def test_a_model_chooses_for_its_own_numbers() -> None:
    model = tiny_model()
    assert (model.attention.name, model.attention.face) == ("torch", "grouped")
    assert PackedModel(model.model, "dense").attention.face == "dense"
    with pytest.raises(ValueError, match=r"model\.attention=varlen: expected .*CUDA device, got torch\.float32 on cpu"):
        PackedModel(model.model, "varlen")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_layers_that_see_a_window_are_refused(family: str, tmp_path: Path) -> None:
    """Of a folder's config.json; where no layer is one of those (max_window_layers is the depth) there is nothing."""
    tiny_model(family).model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    del config["text_config"]["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert PackedModel(load_model(str(tmp_path))).attention.name == "torch"
    config["text_config"]["max_window_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    named = rf"layer_types\[2\]='sliding_attention' in {tmp_path}/config.json.*use_sliding_window"
    with pytest.raises(ValueError, match=named):
        PackedModel(load_model(str(tmp_path)))


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_in_attention_is_refused_where_it_trains(family: str) -> None:
    """A model only looked at has none, whatever its config says."""
    model = tiny_model(family).model
    refuse_dropout(model)
    model.config.get_text_config().attention_dropout = 0.1
    PackedModel(model)
    with pytest.raises(ValueError, match=r"expected attention_dropout 0 to train, got 0\.1"):
        refuse_dropout(model)


def test_a_stage_asks_for_dropout_before_it_begins(tmp_path: Path) -> None:
    processor = make_processor(build_tokenizer(["x"]))
    model = load_model("qwen2_vl_tiny", vocab=processor.tokenizer.get_vocab())
    model.config.text_config.attention_dropout = 0.1
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"expected attention_dropout 0 to train, got 0\.1 in {tmp_path}"):
        make_policy("sft", Config(), Inputs({"sft": []}, processor), str(tmp_path), CPU)


@pytest.mark.parametrize("name", [*sorted(LIBRARIES), "triton"])
def test_a_library_that_cannot_run_is_an_error_with_a_remedy(name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.attention={name}: .*(; run: pip install |CUDA).*attention=auto"):
        choose_attention(name, CPU, *MODEL)


def test_a_name_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"model\.attention: expected one of auto, torch, .*got 'sdpa'"):
        choose_attention("sdpa", CPU, *MODEL)


@pytest.mark.parametrize(
    ("module", "arguments", "reason"),
    [
        ("no_such_package.ops", (), r"no_such_package: ModuleNotFoundError: .*; get it"),
        ("torch.nn.functional", ("weight", "cu_seqlens_q"), r"torch: its layer_norm takes no cu_seqlens_q; get it"),
    ],
)
def test_a_missing_package_and_one_of_another_signature(
    monkeypatch: pytest.MonkeyPatch, module: str, arguments: tuple[str, ...], reason: str
) -> None:
    entry = Library(path_attention, module, "layer_norm", arguments, "get it")
    monkeypatch.setitem(LIBRARIES, "odd", entry)
    with pytest.raises(ValueError, match=reason):
        installed("odd")


def from_the_top_left(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PathLayout, scaling: float | None
) -> torch.Tensor:
    """Causal as flash-attn was before 2.1, and as `is_causal` of torch still is."""
    parts = (x.split(n) for x, n in ((q, layout.lengths_q), (k, layout.lengths_k), (v, layout.lengths_k)))
    heads_first = ([x.transpose(0, 1)[None] for x in segment] for segment in zip(*parts, strict=True))
    return torch.cat([F.scaled_dot_product_attention(*s, is_causal=True)[0].transpose(0, 1) for s in heads_first])


def test_the_trial_does_not_lose_a_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong gradient of the queries only, as an unwritten row of memory would make it."""

    def spoil(*given: Any) -> torch.Tensor:
        q, *rest = given
        q.register_hook(lambda grad: grad * torch.nan)
        return segment_attention(q * 1, *rest)

    monkeypatch.setitem(LIBRARIES, "flash_attn", Library(spoil, "torch", "einsum", (), ""))
    assert math.isnan(worst_error("flash_attn", CPU, torch.bfloat16, 4, 2, 16))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_trial_tells_right_from_wrong(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Twice as far from the limit as rounding goes, and a mask aligned to the wrong corner is far beyond it."""
    assert worst_error("paths", CPU, dtype, 4, 2, 64) < TOLERANCE[dtype] / 2
    wrong = Library(from_the_top_left, "torch.nn.functional", "scaled_dot_product_attention", (), "")
    monkeypatch.setitem(LIBRARIES, "flash_attn", wrong)
    assert worst_error("flash_attn", CPU, dtype, 4, 4, 64) > 0.1


def test_torch_varlen_gets_what_it_wants() -> None:
    """On tensors without data: its own checks of arguments, shapes and dtypes, forward and backward."""
    q, k, v = (torch.empty(32, h, 16, dtype=torch.bfloat16, device="meta", requires_grad=True) for h in (4, 2, 2))
    out = path_attention(q, k, v, build_layout(SPANS, "varlen").to("meta"), 0.3)
    grads = torch.autograd.grad(out, (q, k, v), torch.empty_like(out))
    assert [(x.shape, x.dtype) for x in (out, *grads)] == [(x.shape, x.dtype) for x in (q, q, k, v)]


@pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="xformers is not installed")
def test_xformers_mask_is_ours() -> None:
    """Its mask, written out, is who sees whom over the paths: the dense mask's columns in the paths' order."""
    layout: Any = build_layout(SPANS, "xformers")
    theirs = bottom_right_mask(layout.lengths_q, layout.lengths_k, CPU).materialize((32, len(layout.index))) == 0
    found = torch.zeros(32, 32, dtype=torch.int64).index_add_(1, layout.index, theirs.long())
    assert torch.equal(found, build_layout(SPANS, "dense").mask.long())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("library", [*AUTO, "triton"])
def test_a_library_on_the_gpu(library: str, dtype: torch.dtype, model: str) -> None:
    """Against the dense mask in fp32: as near as plain torch in the same dtype, but for one rounding."""
    package = LIBRARIES[library].module.partition(".")[0] if library in LIBRARIES else "triton"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    device = torch.device("cuda")
    assert obstacle(library, device, dtype, *MODELS[model]) is None
    ours, torchs = (worst_error(face, device, dtype, *MODELS[model]) for face in (library, "paths"))
    assert ours <= 2 * torchs + torch.finfo(dtype).eps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_on_the_gpu_says_which_and_why() -> None:
    choice = choose_attention("auto", torch.device("cuda"), torch.bfloat16, 12, 2, 128)
    assert choice.name in (*AUTO, "torch") and choice.line.startswith(f"attention: {choice.name}")
    assert choose_attention("auto", torch.device("cuda"), torch.float32, 12, 2, 128).face == "grouped"
