"""The verl drop-in, against verl 0.9.1 itself: its worker, engine and losses, in a process of its own on a CPU."""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import univg_kernels as uk
import yaml
from ops.peers.problem import make_problem
from pages import snippets

from bench import dropins
from univg_fast.integrations import verl

PEERS = Path(sys.prefix) / "peers"
NEEDED = ("verl-0.9.1.dist-info", "tensordict", "omegaconf", "codetiming", "orjson", "pyvers", "cloudpickle")
if missing := [name for name in NEEDED if not (PEERS / name).is_dir()]:
    pytest.skip(f"{', '.join(missing)} not in {PEERS}; `make setup` puts them there", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # half a minute of CPU, for all of the module

HOST = Path(__file__).with_name("hosts") / "verl_cases.py"
IOUS = [0.1, 0.9, 0.3, 1.0, 0.5, 0.6, 0.99, 0.8]  # completions i and i + 4 are of one prompt
PHI = [math.exp(1 - (IOUS[i % 4] + IOUS[i % 4 + 4]) / 2) for i in range(8)]
INFOS = {
    "its own": {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None, "loss_scale_factor": None},
    "of two ranks": {"dp_size": 2, "batch_num_tokens": 37, "global_batch_size": 11, "loss_scale_factor": 9},
}
AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
UPDATES: dict[str, dict[str, Any]] = {
    "vanilla": {"loss_mode": "vanilla"},
    "gspo": {"loss_mode": "gspo", "actor": {"loss_agg_mode": "seq-mean-token-mean", "kl_loss_type": "k2"}},
}
WIDE = {"clip_ratio_high": 4.0}
MORE: dict[str, dict[str, Any]] = {
    "cispo, wide": WIDE,
    "gpg, wide": WIDE,
    "vanilla, wide": WIDE | {"clip_ratio_c": 6.0},
    "vanilla, distillation": {},
}
# The last row is one that verl fills the batch up with: the first one, under a uid of its own and without a token.
PADDED = {
    "padding": [7],
    "columns": {"iou": [*IOUS[:7], IOUS[0]], "uid": [f"prompt {i % 4}" for i in range(7)] + ["pad0123"]},
}
# univg: the settings of `patch`, of which the rest of the loss table is told
TABLE: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": name} for name in ("grpo", "cispo", "sapo", "vespo", "gmpo", "reinforce")},
    "off-policy mask": {"off_policy_mask_threshold": -1.5},
    "its own bounds": {"log_ratio_min": -2.0, "log_ratio_max": 1.0, "importance_sampling_level": "sequence"},
    "one-sided": {"loss_type": "cispo", "cispo_two_sided": False},
    "vespo, its own": {f"vespo_{k}_{side}": 1.5 for k in ("k", "lambda") for side in ("pos", "neg")}
    | {"loss_type": "vespo"},
}
WRONG = {
    "no such metric": ({"phi": "miou"}, "vanilla"),
    "a loss without phi": ({"phi": "iou"}, "dppo_tv"),
}


def loss_arguments() -> dict[str, list[list[float]]]:
    """A batch with every hard case (tests/ops/peers/problem.py), 0 where verl has padding."""
    problem = make_problem()
    weights = 0.5 + torch.rand(problem.mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = {
        "log_prob": problem.logp,
        "old_log_prob": problem.old,
        "advantages": problem.advantages[:, None].expand(problem.mask.shape),
        "response_mask": problem.mask.double(),
        "rollout_is_weights": weights,
    }
    return {name: torch.where(problem.present, value, 0.0).tolist() for name, value in found.items()}


def all_cases() -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {}
    for name, case in UPDATES.items():
        cases[f"{name}, host"] = {"patch": None} | case
        cases[f"{name}, drop-in"] = {"patch": {}} | case
    cases["phi, host"] = {"patch": None, "scale": PHI} | UPDATES["vanilla"]
    cases["phi, drop-in"] = {"patch": {"phi": "iou"}, "columns": {"iou": IOUS}} | UPDATES["vanilla"]
    extra = [{"reward_extra_info": {"score": 1.0, "iou": value}} for value in IOUS]
    cases["phi, in extra_fields"] = cases["phi, drop-in"] | {"columns": {"extra_fields": extra}}
    cases["phi, log"] = cases["phi, drop-in"] | {"patch": {"phi": "iou", "difficulty": "log"}}
    for name, (given, mode) in WRONG.items():
        cases[name] = {"patch": given, "loss_mode": mode, "columns": {"iou": IOUS}}
    given = loss_arguments()
    for mode in verl.MODES:
        for aggregation in AGGREGATIONS:
            for who, info in INFOS.items():
                case = {"loss_mode": mode, "actor": {"loss_agg_mode": aggregation}, "info": info, "loss": given}
                case["actor"] |= {"clip_ratio_low": 0.3, "clip_ratio_high": 0.25, "tau_pos": 0.8}
                cases[f"{mode}, {aggregation}, {who}, host"] = case | {"patch": None}
                cases[f"{mode}, {aggregation}, {who}, drop-in"] = case | {"patch": {}}
    for name, actor in MORE.items():
        case = {"loss_mode": name.split(",")[0], "actor": actor, "info": INFOS["of two ranks"], "loss": given}
        case["distillation"] = "distillation" in name
        cases[f"{name}, host"] = case | {"patch": None}
        cases[f"{name}, drop-in"] = case | {"patch": {}}
    cases["phi, distillation"] = case | {"patch": {"phi": "iou"}}
    cases["phi, padded"] = cases["phi, drop-in"] | PADDED | {"patch": {"phi": "iou", "normalize_difficulty": True}}
    for mode in ("vanilla", "univg"):
        cases[f"dual clip, {mode}"] = {"patch": {}, "loss_mode": mode, "actor": WIDE, "info": {}, "loss": given}
    for name, own in TABLE.items():
        case = {"loss_mode": "univg", "info": INFOS["of two ranks"], "loss": given}
        cases[f"univg {name}"] = case | {"patch": own}
    return cases


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, python_launcher: Callable[..., Any]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("verl")
    (folder / "cases.json").write_text(json.dumps(all_cases()))
    done = python_launcher(str(HOST), str(folder / "out.pt"), str(folder / "cases.json"), timeout=800)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "out.pt", weights_only=False)


def test_the_recipe_of_the_docs(tmp_path: Path, python_launcher: Callable[..., Any]) -> None:
    """VERL_USE_EXTERNAL_MODULES, which is read while verl is half imported; the page's key is one of main_ppo's."""
    (snippet,) = snippets("verl")
    said = re.match(r"# (\S+); to main_ppo: \+(\S+)\.env_vars\.(\w+)=(\w+)\n", snippet)
    assert said is not None
    file, key, variable, module = said.groups()
    keys = yaml.safe_load((PEERS / "verl" / "trainer" / "config" / "_generated_ppo_trainer.yaml").read_text())
    assert functools.reduce(dict.__getitem__, key.split("."), keys)
    (tmp_path / file).write_text(snippet)
    (tmp_path / "main.py").write_text(
        f"import os, sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(HOST.parent)!r}]\n"
        f"os.environ[{variable!r}] = {module!r}\n"
        "import verl_on_cpu, verl_worker\nverl_on_cpu.prepare()\n"
        "losses, *functions = verl_worker.patched_names()\n"
        "print('patched:', 'univg' in losses, *['univg_fast' in f.__code__.co_filename for f in functions])\n"
    )
    done = python_launcher(str(tmp_path / "main.py"), timeout=800)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "patched: True True True True True True" in done.stdout


def test_the_bench_measures_a_whole_update() -> None:
    """In a process of its own, which `python -m bench.dropins` starts for it."""
    rows = dropins.in_a_process("verl", argparse.Namespace(size="tiny", rounds=3, budget=5.0))
    assert [(row["variant"], row["status"]) for row in rows] == [("host", "timed"), ("drop-in", "timed")]
    assert 0 < rows[1]["gradient_error"] <= dropins.GRADIENTS and rows[1]["wall_p50_s"] > 0


def compare(ours: dict[str, Any], theirs: dict[str, Any], *, only: tuple[str, ...] = ()) -> None:
    """Metrics (all but clocks and memory) and gradients of two updates."""
    clocks = ("mfu", "perf/")
    names = only or [name for name in theirs["metrics"] if not name.startswith(clocks)]
    assert only or theirs["metrics"].keys() == ours["metrics"].keys()
    for name in names:
        assert ours["metrics"][name] == pytest.approx(theirs["metrics"][name], rel=1e-5, abs=2e-6), name
    for step, (a, b) in enumerate(zip(ours["gradients"], theirs["gradients"], strict=True)):
        assert a.keys() == b.keys() and len(b) > 20
        for name in b:
            error = (a[name] - b[name]).norm() / b[name].norm().clamp(min=1e-6)
            assert error < 1e-5, f"update {step}, {name}: {error}"


@pytest.mark.parametrize("name", UPDATES)
def test_updates_of_the_actor_are_verls(name: str, results: dict[str, Any]) -> None:
    theirs = results["found"][f"{name}, host"]
    compare(results["found"][f"{name}, drop-in"], theirs)
    assert theirs["metrics"]["actor/pg_clipfrac"] != [0, 0] and len(theirs["gradients"]) == 2


def test_everything_is_put_back(results: dict[str, Any]) -> None:
    assert results["restored"] == [True] * 6


@pytest.mark.parametrize("mode", verl.MODES)
def test_losses_where_they_clip(mode: str, results: dict[str, Any]) -> None:
    """fp64. verl adds 1e-8 to a response's length in means over responses, and to the number of rows in metrics."""
    for aggregation in AGGREGATIONS:
        for who in INFOS:
            ours, theirs = (results["found"][f"{mode}, {aggregation}, {who}, {x}"] for x in ("drop-in", "host"))
            where = f"{mode}, {aggregation}, {who}"
            for part in ("loss", "gradient"):
                torch.testing.assert_close(
                    ours[part], theirs[part], rtol=3e-8, atol=1e-9, msg=lambda m, w=f"{where}, {part}": f"{w}\n{m}"
                )
            assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-6, abs=1e-7), where


def policy_term(results: dict[str, Any], weight: list[float]) -> float:
    """verl's vanilla loss of the first update (rows 0 to 3), token by token in fp64."""
    batch = {name: value.double() for name, value in results["batch"].items()}
    total = 0.0
    for i in range(4):
        for t in batch["response_mask"][i].nonzero()[:, 0]:
            ratio = math.exp(results["log_probs"][i, t].double() - batch["old_log_probs"][i, t])
            a = batch["advantages"][i, t].item()
            term = max(-a * ratio, -a * min(max(ratio, 0.8), 1.2))
            total += weight[i] * batch["rollout_is_weights"][i, t].item() * (min(term, -a * 3) if a < 0 else term)
    return total / batch["response_mask"][:4].sum().item()


def test_phi_is_the_formula(results: dict[str, Any]) -> None:
    """A prompt's completions lie in different updates here, as on different ranks: φ is of all of them."""
    found = results["found"]
    log = [-math.log(0.02 + (IOUS[i] + IOUS[i + 4]) / 2) for i in range(4)]
    for name, weight in (("phi, drop-in", PHI), ("phi, log", log), ("vanilla, drop-in", [1.0] * 4)):
        total = found[name]["metrics"]["actor/pg_loss"][0]  # of the first update
        assert total == pytest.approx(policy_term(results, weight), rel=1e-5), name
    assert found["phi, drop-in"]["metrics"]["actor/difficulty_weight"][0] == pytest.approx(sum(PHI[:4]) / 4)


def test_phi_is_verls_loss_of_weighted_advantages(results: dict[str, Any]) -> None:
    """Which is the same where φ is positive, and verl computes all of it."""
    theirs = results["found"]["phi, host"]
    for name in ("phi, drop-in", "phi, in extra_fields"):
        compare(results["found"][name], theirs, only=("actor/pg_loss", "grad_norm", "loss"))


@pytest.mark.parametrize("name", TABLE)
def test_the_whole_loss_table(name: str, results: dict[str, Any]) -> None:
    """`loss_mode=univg` against `policy_loss` on the flat rows of the batch, by its specification."""
    given = {name: torch.tensor(value, dtype=torch.float64) for name, value in loss_arguments().items()}
    width = given["log_prob"].shape[1]
    verls = {"log_ratio_min": -20.0, "log_ratio_max": 20.0, "cispo_two_sided": True}
    loss_type = TABLE[name].get("loss_type", "grpo")
    config = uk.GrpoConfig(
        **verls | TABLE[name],
        loss_aggregation="token-mean",
        delta=3.0 if loss_type == "grpo" else None,
        max_completion_length=9,
        beta=0.0,
    )
    logp = given["log_prob"].flatten().requires_grad_()
    loss = uk.policy_loss(
        logp,
        torch.arange(7) * width,
        config=config,
        backend="reference",
        advantages=make_problem().advantages,
        old_logp=given["old_log_prob"].flatten(),
        mask=given["response_mask"].flatten().bool(),
        token_importance_ratio=given["rollout_is_weights"].flatten(),
        denominator=37 / 2,
    ).loss
    (gradient,) = torch.autograd.grad(loss, logp)
    ours = results["found"][f"univg {name}"]
    assert name == "grpo" or ours["loss"] != results["found"]["univg grpo"]["loss"], "the setting changes nothing here"
    torch.testing.assert_close(ours["loss"], loss.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours["gradient"], gradient.view(-1, width), rtol=1e-9, atol=1e-12)


def test_phi_that_cannot_be(results: dict[str, Any]) -> None:
    assert "phi='miou' must be a metric" in results["found"]["no such metric"]["error"]
    assert "got 'dppo_tv'" in results["found"]["a loss without phi"]["error"]
    assert "leave phi out for distillation" in results["found"]["phi, distillation"]["error"]


@pytest.mark.parametrize("mode", ["vanilla", "univg"])
def test_a_dual_clip_below_the_upper_clip_is_refused(mode: str, results: dict[str, Any]) -> None:
    """clip_ratio_high=4 with clip_ratio_c=3: at A > 0 verl's would go on to a ratio of 5, ours stop at 3."""
    assert (
        "clip_ratio_c must be at least 1 + the upper clip ratio = 5" in results["found"][f"dual clip, {mode}"]["error"]
    )


@pytest.mark.parametrize("name", MORE)
def test_wide_clips_and_distillation(name: str, results: dict[str, Any]) -> None:
    """Clips above clip_ratio_c, which cispo and gpg have not; distillation's config, which has no tau."""
    ours, theirs = (results["found"][f"{name}, {who}"] for who in ("drop-in", "host"))
    torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours["gradient"], theirs["gradient"], rtol=1e-9, atol=1e-12)
    assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-6, abs=1e-7)


def test_rows_that_fill_up_a_batch_are_no_prompt(results: dict[str, Any]) -> None:
    """φ with mean 1 of four prompts, of which the last has one completion; logged of rows with tokens."""
    mious = [(IOUS[i] + IOUS[i + 4]) / 2 for i in range(3)] + [IOUS[3]]
    raw = [math.exp(1 - miou) for miou in mious]
    phi = [value / sum(raw) * 4 for value in raw]
    logged = results["found"]["phi, padded"]["metrics"]["actor/difficulty_weight"]
    assert logged == pytest.approx([1.0, ((phi[0] + phi[1]) / 2 + phi[2]) / 2], rel=1e-6)
