"""A trained reward model: sequence classification with one output."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from post_training.core.errors import DataError
from post_training.rewards import register_reward


@register_reward("reward_model", place="gpu")
def reward_model(
    prompts: list[Any], completions: list[Any], *, model: str, max_length: int = 4096, batch_size: int = 16
) -> list[float | None]:
    """The output of a sequence-classification model, asked in its own chat template; longer conversations than `max_length`
    tokens get no score. `model` is a stage, an id or a folder."""
    from post_training.models.conversation import conversation_ids, own_template
    from post_training.models.loading import padded_scores

    network, tokenizer, stop = _loaded(model)
    template = own_template(tokenizer)
    ids = [
        conversation_ids(tokenizer, [*prompt, *completion], template)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    found: list[float | None] = [None] * len(ids)
    fitting = [index for index, one in enumerate(ids) if len(one) <= min(max_length, stop)]
    scores = padded_scores(network, [ids[index] for index in fitting], tokenizer.pad_token_id, batch_size)
    for index, score in zip(fitting, scores, strict=True):
        found[index] = score
    return found


@lru_cache(maxsize=1)
def _loaded(folder: str) -> tuple[Any, Any, int]:
    """Model in evaluation mode, tokenizer, and the longest input."""
    from post_training.models.conversation import own_template
    from post_training.models.loading import load_for_inference, load_tokenizer, longest_input

    tokenizer = load_tokenizer(Path(folder))
    if not own_template(tokenizer):
        raise DataError(f"{folder}: its tokenizer has no chat template; use a reward model for conversations")
    network = load_for_inference(Path(folder), model_class="AutoModelForSequenceClassification")
    if network.config.num_labels != 1:
        raise DataError(f"{folder}: has {network.config.num_labels} outputs, expected a reward model with 1")
    if network.config.pad_token_id is None:
        network.config.pad_token_id = tokenizer.pad_token_id
    return network, tokenizer, longest_input(network)
