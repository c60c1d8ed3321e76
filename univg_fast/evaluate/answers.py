"""Answers of a model to a rank's items, greedily, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from univg_fast.config import EvaluateConfig, RolloutConfig
from univg_fast.data.samples import Processor, SampleError, make_sample
from univg_fast.model import PackedModel
from univg_fast.rollout import LocalEngine, Sampling, stop_ids
from univg_fast.structs import Sample

from .items import AS_TOLD, Form, Item, record_of
from .predictions import Prediction

Batch = list[tuple[Item, Prediction]]


def answer(
    model: PackedModel,
    processor: Processor,
    items: Sequence[Item],
    config: EvaluateConfig,
    rollout: RolloutConfig,
    should_stop: Callable[[], bool] = lambda: False,
    form: Form = AS_TOLD,
) -> Iterator[Batch]:
    """Yield each batch of `config.prompts_per_batch` items with its answers, as the model wrote them.

    An item that cannot be shown to the model has an empty answer that says why. Ends early once `should_stop` says yes;
    the batch under way is then thrown away. An answer does not depend on what else is in its batch.
    """
    engine = LocalEngine(
        model,
        processor.tokenizer,
        stop_ids(model.model, processor.end_token_id),
        cache_gib=rollout.cache_gib,
        static=None if rollout.cuda_graphs else False,
        should_stop=should_stop,
    )
    sampling = Sampling(config.max_completion_length, temperature=0.0, stop=rollout.stop_strings)
    for at in range(0, len(items), config.prompts_per_batch):
        if should_stop():
            return
        batch = items[at : at + config.prompts_per_batch]
        shown = [_sample(item, processor, form) for item in batch]
        samples = [sample for sample in shown if isinstance(sample, Sample)]
        found = iter(engine.generate(samples, 1, sampling))
        if should_stop():
            return  # what there is may be cut short
        yield [
            (item, sample if isinstance(sample, Prediction) else _prediction(next(found)[0], sample, processor))
            for item, sample in zip(batch, shown, strict=True)
        ]


def _sample(item: Item, processor: Processor, form: Form) -> Sample | Prediction:
    """What the model is shown; where that cannot be, an empty answer that says why."""
    if not item.images:
        return Prediction(error=f"{item.source}: {item.problem or 'it has no images'}")
    try:
        return make_sample(record_of(item, form), processor, with_response=False)
    except SampleError as error:
        return Prediction(error=str(error))


def _prediction(completion: Any, sample: Sample, processor: Processor) -> Prediction:
    resized = sample.resized if processor.coordinates == "resized" else ()
    return Prediction(completion.text, None, len(completion.token_ids), sizes=sample.sizes, resized=resized)
