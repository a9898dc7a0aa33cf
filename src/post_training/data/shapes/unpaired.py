"""Judged answers: `{"prompt": [...], "completion": [...], "label": true | false}`; `label` says whether the
answer is desirable. Prompt and completion are messages.
"""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from post_training.data.chat_template import ChatTemplate
from post_training.data.encode import Encoder, Ids, Mask, common_prefix
from post_training.data.rows import Bad, Rules, answer, check_tools, turns

KEY = "completion"
_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema([("prompt_ids", _IDS), ("completion_ids", _IDS), ("label", _IDS)])


def validate(row: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """An answer that ends the conversation, and a verdict that is true or false and nothing like it."""
    prompt = turns(row, "prompt")
    completion = answer(row, "completion", prompt, rules)
    label = row.get("label")
    if not isinstance(label, bool):
        raise Bad("missing_column" if label is None else "wrong_type", f"label is {label!r}, expected true or false")
    return {"prompt": prompt, "completion": completion, "label": label, **check_tools(row)}


def tokenize(
    rows: list[dict[str, Any]], template: ChatTemplate, encoder: Encoder, dropped: Counter[str]
) -> list[dict[str, Any]]:
    """Ids of prompt and completion, and the label as `[1]` or `[0]`."""
    texts, kept = [], []
    for row in rows:
        tools = row.get("tools")
        try:
            asked, _ = template.render(row["prompt"], tools, add_generation_prompt=True)
            whole, _ = template.render([*row["prompt"], *row["completion"]], tools)
        except ValueError as error:
            dropped[str(error).partition(":")[0]] += 1
            continue
        texts += [asked, whole]
        kept.append(row)
    encoded = [ids for ids, _ in encoder.encode(texts, [[]] * len(texts))]
    made = []
    for row, asked_ids, whole_ids in zip(kept, encoded[0::2], encoded[1::2], strict=True):
        # As with pairs: the answer starts where the renderings diverge.
        shared = common_prefix(asked_ids, whole_ids)
        if shared == len(whole_ids):
            dropped["no_trained_token"] += 1
            continue
        ids = {"prompt_ids": whole_ids[:shared], "completion_ids": whole_ids[shared:]}
        made.append({**ids, "label": np.array([row["label"]], dtype=np.int32), "row": row["row"]})
    return made


def lengths(batch: pa.RecordBatch) -> np.ndarray:
    """Tokens of prompt and completion."""
    return token_counts(batch)[0]


def token_counts(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and completion; trained is the completion."""
    names = ("prompt_ids", "completion_ids")
    prompt, completion = (np.diff(batch.column(name).offsets.to_numpy()).astype(np.int64) for name in names)
    return prompt + completion, completion


def sequences(row: dict[str, Any]) -> list[tuple[str, Ids, Mask]]:
    """The prompt with its answer."""
    ids = np.concatenate([row["prompt_ids"], row["completion_ids"]])
    return [("completion", ids, np.arange(len(ids)) >= len(row["prompt_ids"]))]
