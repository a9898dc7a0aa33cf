"""Sampled answers of one batch, without work for rows that have ended.

Transformers' `generate` computes a padded batch until its last row ends. Here it is called for some tokens at a time, and
continues, with its cache, for the rows that have not ended.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from post_training.models.loading import as_asked, left_padded

if TYPE_CHECKING:
    import torch

# Tokens of the first call; each later one has twice as many, so that long answers need few calls.
_FIRST_TOKENS = 8


def decode(
    model: Any,
    prompts: list[list[int]],
    stop: list[int],
    pad: int,
    filters: list[Any],
    draws: npt.NDArray[np.float64] | None,
    max_new_tokens: int,
) -> list[list[int]]:
    """Answers as token ids, cut after the stop token.

    Args:
        model: causal language model in evaluation mode.
        prompts: token ids; padded on the left, so that every answer begins at the same column.
        stop: ids that end an answer.
        pad: id of the padding.
        filters: Transformers' logits processors before the draw, such as temperature and top-p.
        draws: float64 `[prompts, max_new_tokens]` in [0, 1), one for each token; None = greedy.
        max_new_tokens: longest answer.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    ids, mask = left_padded(prompts, pad, model.device)
    width = ids.shape[1]
    answers: list[list[int]] = [[] for _ in prompts]
    rows, cache, done, tokens = list(range(len(prompts))), None, 0, _FIRST_TOKENS
    while rows:
        tokens = min(tokens, max_new_tokens - done)
        config = GenerationConfig(
            do_sample=False, max_new_tokens=tokens, eos_token_id=stop, pad_token_id=pad, return_dict_in_generate=True
        )  # type: ignore[no-untyped-call]
        chosen = [] if draws is None else [*filters, partial(draw, draws[rows], width)]
        with torch.inference_mode(), as_asked(model):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(chosen),
                past_key_values=cache,
            )
        new = output.sequences[:, ids.shape[1] :]
        done += new.shape[1]
        left = []
        for place, (row, found) in enumerate(zip(rows, new.tolist(), strict=True)):
            end = next((end for end, token in enumerate(found, 1) if token in stop), None)
            answers[row] += found[:end]
            if end is None and done < max_new_tokens:
                left.append(place)
        if not left:
            break
        rows, kept = [rows[place] for place in left], torch.tensor(left, device=ids.device)
        ids = output.sequences[kept]
        mask = torch.cat([mask[kept], torch.ones_like(new[kept])], dim=1)
        cache = output.past_key_values
        if not hasattr(cache, "batch_select_indices"):
            cache = None  # computed again
        elif len(left) < new.shape[0]:
            cache.batch_select_indices(kept)
        tokens = 2 * tokens
    return answers


def draw(draws: npt.NDArray[np.float64], width: int, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
    """Logits in which only the drawn token is left: the first whose cumulative probability exceeds the row's number.

    Args:
        draws: float64 `[batch, max_new_tokens]` in [0, 1).
        width: tokens of the padded prompts.
        ids: int64 `[batch, tokens so far]`.
        scores: float32 `[batch, vocabulary]`.
    """
    import torch

    cumulative = torch.softmax(scores, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    wanted = torch.from_numpy(draws[:, ids.shape[1] - width]).to(scores.device)[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, wanted, right=True).clamp_(max=scores.shape[-1] - 1)
    return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
