"""ms-swift's own `GRPOTrainer` methods, from log-probabilities to logged metrics, on a real model.

The whole package needs modelscope and a dozen others at import: the methods are cut out of the bare wheel's source,
unchanged (tests/ops/peers/source.py). Written here: the object that they are methods of, and the batch it is given.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from ops.peers import ms_swift_oracle
from ops.peers.source import PEERS, functions, methods

__all__ = ["PEERS", "GRPOTrainer", "make_trainer", "trainer_class"]
_GRPO, _UTILS, _ADVANTAGE = (
    "swift/rlhf_trainers/grpo_trainer.py",
    "swift/rlhf_trainers/utils.py",
    "swift/rl_core/advantage.py",
)
_nanstd = functions("swift/utils/torch_utils.py", "nanstd")
_METHODS = (
    "compute_loss",
    "_compute_loss",
    "_compute_loss_single",
    "_update_metrics",
    "_get_per_token_logps_and_entropies",
    "_get_per_token_logps_and_entropies_single",
    "_get_logps_via_local_forward",
    "_unpad_logps_and_entropies",
    "_compute_advantages",
    "_prepare_inputs",
    "_gather_and_flatten",
)
_NAMES: dict[str, Any] = (
    {"gather": lambda x: x, "gather_object": lambda x: x}  # of one rank
    | {"WINDOW_NORMALIZED_LOSS_TYPES": ms_swift_oracle._CONSTANTS["WINDOW_NORMALIZED_LOSS_TYPES"]}
    | ms_swift_oracle._SMALL
    | functions("trl/trainer/utils.py", "selective_log_softmax", is_triton_available=lambda: False)
    | functions(_UTILS, "entropy_from_logits", "pad_logps_back_to_batch", F=F)
    | functions(_ADVANTAGE, "compute_advantages", **_nanstd)
    | functions(_ADVANTAGE, "compute_reward_metrics", RewardMetrics=SimpleNamespace)
)


def trainer_class(**names: Any) -> type:
    """names: other functions among which its methods are compiled."""
    return methods(_GRPO, "GRPOTrainer", *ms_swift_oracle._METHODS, *_METHODS, **_NAMES | names)


GRPOTrainer = trainer_class()


def make_trainer(
    model: Any, *, padding_free: bool = False, temperature: float = 0.9, owner: type = GRPOTrainer, **settings: Any
) -> Any:
    """`settings`: as in tests/ops/peers/ms_swift_oracle.py."""
    self = owner()
    self.__dict__.update(ms_swift_oracle.trainer((None, None), **settings).__dict__)
    del self._get_per_token_logps_and_entropies  # the oracle's: here they come from the model
    self.model, self.temperature = model, temperature
    self.model_kwarg_keys = set(inspect.signature(type(model).forward).parameters)
    self.template = SimpleNamespace(padding_free=padding_free, sequence_parallel_size=1)
    self.args.log_entropy = self.compute_entropy = True
    self.args.per_device_train_batch_size = self.args.per_device_eval_batch_size = 1
    self.use_liger_loss = self.dynamic_num_samples = False
    self._metrics, self._logs = {"train": defaultdict(list), "eval": defaultdict(list)}, defaultdict(list)
    self._logs["rewards"] = defaultdict(list)
    self.reward_func_names, self.reward_weights = ["iou", "format"], torch.ones(2)
    self.num_generations, self.num_generations_eval = 4, 2
    self.scale_rewards, self.advantage_estimator = "group", "grpo"
    return self
