"""Pairs: `{"prompt": [...], "chosen": [...], "rejected": [...]}`, all messages; the better answer is `chosen`."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from post_training.data.chat_template import ChatTemplate
from post_training.data.encode import Encoder, Ids, Mask, common_prefix
from post_training.data.rows import Bad, Rules, answer, check_tools, turns

KEY = "chosen"
_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema([("prompt_ids", _IDS), ("chosen_ids", _IDS), ("rejected_ids", _IDS)])


def validate(row: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """Two different answers, each of which ends the conversation that the prompt began."""
    prompt = turns(row, "prompt")
    chosen, rejected = (answer(row, key, prompt, rules) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise Bad("identical_pair")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **check_tools(row)}


def tokenize(
    rows: list[dict[str, Any]], template: ChatTemplate, encoder: Encoder, dropped: Counter[str]
) -> list[dict[str, Any]]:
    """Ids of the prompt that both answers share, and of each answer."""
    texts, kept = [], []
    for row in rows:
        prompt, tools = row["prompt"], row.get("tools")
        try:
            asked, _ = template.render(prompt, tools, add_generation_prompt=True)
            chosen, _ = template.render([*prompt, *row["chosen"]], tools)
            rejected, _ = template.render([*prompt, *row["rejected"]], tools)
        except ValueError as error:
            dropped[str(error).partition(":")[0]] += 1
            continue
        texts += [asked, chosen, rejected]
        kept.append(row["row"])
    encoded = [ids for ids, _ in encoder.encode(texts, [[]] * len(texts))]
    made = []
    triples = zip(kept, encoded[0::3], encoded[1::3], encoded[2::3], strict=True)
    for number, prompt_ids, chosen_ids, rejected_ids in triples:
        # An answer starts where the renderings diverge, which is before the prompt's end where tokens merge across it.
        shared = min(common_prefix(prompt_ids, chosen_ids), common_prefix(prompt_ids, rejected_ids))
        answers = {"chosen_ids": chosen_ids[shared:], "rejected_ids": rejected_ids[shared:]}
        if not len(answers["chosen_ids"]) or not len(answers["rejected_ids"]):
            dropped["no_trained_token"] += 1
        elif np.array_equal(answers["chosen_ids"], answers["rejected_ids"]):
            dropped["identical_pair"] += 1
        else:
            made.append({"prompt_ids": prompt_ids[:shared], **answers, "row": number})
    return made


def lengths(batch: pa.RecordBatch) -> np.ndarray:
    """Tokens of the prompt with the longer answer."""
    prompt, chosen, rejected = _sizes(batch)
    return prompt + np.maximum(chosen, rejected)


def token_counts(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and both answers; trained are the answers."""
    prompt, chosen, rejected = _sizes(batch)
    return prompt + chosen + rejected, chosen + rejected


def _sizes(batch: pa.RecordBatch) -> list[np.ndarray]:
    return [np.diff(batch.column(name).offsets.to_numpy()).astype(np.int64) for name in SCHEMA.names]


def sequences(row: dict[str, Any]) -> list[tuple[str, Ids, Mask]]:
    """The prompt with each answer."""
    prompt = np.asarray(row["prompt_ids"])
    found = []
    for name in ("chosen", "rejected"):
        ids = np.concatenate([prompt, row[f"{name}_ids"]])
        found.append((name, ids, np.arange(len(ids)) >= len(prompt)))
    return found
