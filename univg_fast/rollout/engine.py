"""What the trainer asks of whatever generates: this process, or a vLLM or SGLang server elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from univg_fast.model.features import ImageFeatures
from univg_fast.rollout.sampling import Sampling
from univg_fast.structs import Completion, Sample


class RolloutEngine(Protocol):
    """Prompts in, G completions each out."""

    def generate(
        self,
        samples: Sequence[Sample],
        num_generations: int,
        sampling: Sampling,
        features: Sequence[ImageFeatures] | None = None,
        repeats: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """`num_generations` completions of each sample, in order, each with its tokens' log-probs when sampled.

        `features`: of each sample's images, for an engine that can use them. Completion j of a sample depends on
        (sampling.seed, its record's uid, its repeat, j) alone, not on the others in the call. `repeats`: of each
        sample, how often its record came before in the step, on any rank; None: in this call.
        """
        ...

    def sync_weights(self, buckets: Iterable[Mapping[str, Tensor]]) -> None:
        """Take over the policy's weights, named as transformers names them, a bucket at a time.

        All of them come at the first call; then those that training changes, and others need not come again.

        Collective: gathering a bucket may need every rank, so either every rank's engine reads all buckets, or none
        reads any (one that shares the trainer's weights). A tensor is valid until the next bucket is asked for. Tied
        weights come once.
        """
        ...
