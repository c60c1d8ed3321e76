"""What the section grpo may say of the loss: everything the kernels have, and each mistake with its key."""

from __future__ import annotations

from pathlib import Path

import pytest
from univg_kernels import GrpoConfig
from univg_kernels.config import AGGREGATION

from univg_fast.config import Config, ConfigError, GrpoStageConfig, load_config
from univg_fast.config.losses import OPTIONS, REFUSED, loss_config, sampler_matters


def test_every_loss_of_the_table_has_its_name_here() -> None:
    for name in AGGREGATION:
        high = 5.0 if name == "cispo" else 0.2
        given = loss_config(GrpoStageConfig(loss_type=name, epsilon_high=high))  # type: ignore[arg-type]
        assert given.loss_type == name and given.max_completion_length == GrpoStageConfig().max_completion_length


def test_every_field_of_the_kernels_is_a_key_an_option_or_refused() -> None:
    own = {name for name in OPTIONS if hasattr(Config().grpo, name)}
    assert len(own) > 10
    for name in own:  # a key that did not reach the loss would be an option as well
        with pytest.raises(ValueError, match=f"expected no {name}, which is a key of its own"):
            loss_config(GrpoStageConfig(loss_options={name: getattr(GrpoStageConfig(), name)}))
    plain = GrpoConfig(max_completion_length=256)
    for name in set(OPTIONS) - own - set(REFUSED):
        value = getattr(plain, name)
        assert loss_config(GrpoStageConfig(loss_options={} if value is None else {name: value})) is not None


def test_options_reach_the_loss_beside_keys() -> None:
    words = ["--grpo.loss_options.delta=1.5", "--grpo.loss_options.kl_estimator=k2", "--grpo.difficulty_power=2"]
    config = loss_config(load_config([*words, "--grpo.importance_sampling_level=sequence"]).grpo)
    assert (config.delta, config.kl_estimator, config.difficulty_power) == (1.5, "k2", 2.0)
    assert config.importance_sampling_level == "sequence" and not sampler_matters(config)
    assert sampler_matters(loss_config(GrpoStageConfig(loss_options={"importance_sampling_mode": "token_mask"})))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("loss_options: {delta: -1}", ":2: grpo.loss_options: delta must be finite and > 0, got -1"),
        ("loss_options: {kl_estimator: k9}", ":2: grpo.loss_options: kl_estimator must be one of 'k1', 'k2', 'k3'"),
        ("loss_options: {kl_estimater: k1}", "unknown option 'kl_estimater'; did you mean 'kl_estimator'?"),
        ("loss_options: {zzz: 1}", "unknown option 'zzz'; expected some of loss_type, "),
        ("loss_options: {beta: 0.1}", "expected no beta, which is a key of its own; set grpo.beta"),
        ("loss_options: {vocab_size: 9}", "expected no vocab_size: the model and the rollout know it"),
        ("loss_options: {top_entropy_quantile: 0.2}", "expected no top_entropy_quantile: the quantile is over the"),
        ("loss_options: {entropy_coef: 0.1}", "expected entropy_aggregation: loss beside entropy_coef"),
        ("loss_type: gspo", ":2: grpo.loss_type: expected one of grpo, bnpo, dr_grpo, dapo, cispo, "),
        ("loss_type: cispo", "grpo.epsilon_high: expected at least 1 with loss_type=cispo"),
        ("{loss_type: gmpo, importance_sampling_level: sequence}", "grpo.loss_type: loss_type='gmpo' has its own"),
        ("{difficulty: log, normalize_difficulty: true}", "grpo.difficulty: the difficulty 'log' cannot be normal"),
        ("{prompts_per_step: 2, steps_per_generation: 3}", "expected at most grpo.prompts_per_step (2), got 3"),
        ("dynamic_sampling_max_draws: 0", "grpo.dynamic_sampling_max_draws: expected a number > 0, got 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_loaded(tmp_path: Path, yaml: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"grpo: {yaml}\n" if yaml.startswith("{") else f"grpo:\n  {yaml}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(["--config", str(path)])
    assert message in str(caught.value) and "\n" not in str(caught.value)
