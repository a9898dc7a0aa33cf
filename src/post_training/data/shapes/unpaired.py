"""Unpaired completions: `{"prompt": [...], "completion": [...], "label": true | false}`; `label` says whether the
answer is desirable. Prompt and completion are messages.
"""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from post_training.data.rows import InvalidRow, Rules, answer, check_tools, turns
from post_training.data.tokens.encode import Encoded, Ids, Lists, Mask, common_prefix
from post_training.data.tokens.engine import flat

KEY = "completion"
_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema([("prompt_ids", _IDS), ("completion_ids", _IDS), ("label", _IDS)])


def validate(row: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """An answer that ends the conversation, and a verdict that is true or false and nothing like it."""
    prompt = turns(row, "prompt")
    completion = answer(row, "completion", prompt, rules)
    label = row.get("label")
    if not isinstance(label, bool):
        raise InvalidRow(
            "missing_column" if label is None else "wrong_type", f"label is {label!r}, expected true or false"
        )
    return {"prompt": prompt, "completion": completion, "label": label, **check_tools(row)}


def conversations(row: dict[str, Any]) -> list[tuple[list[dict[str, Any]], bool]]:
    """The prompt as it is asked, and with its completion."""
    return [(row["prompt"], True), ([*row["prompt"], *row["completion"]], False)]


def columns(
    rows: list[dict[str, Any]], encoded: Encoded, train_on: str, dropped: Counter[str]
) -> tuple[Mask, dict[str, Lists]]:
    """Ids of prompt and completion, and the label as `[1]` or `[0]`."""
    kept = np.ones(len(rows), dtype=np.bool_)
    made: list[tuple[Ids, Ids, Ids]] = []
    for number, row in enumerate(rows):
        prompt, ids = encoded[2 * number][0], encoded[2 * number + 1][0]
        # As with pairs: the answer starts where the renderings diverge.
        shared = common_prefix(prompt, ids)
        if shared == len(ids):
            dropped["no_trained_token"] += 1
            kept[number] = False
            continue
        made.append((ids[:shared], ids[shared:], np.array([row["label"]], dtype=np.int32)))
    return kept, {name: flat([row[place] for row in made]) for place, name in enumerate(SCHEMA.names)}


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
