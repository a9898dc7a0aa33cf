"""Unpaired completions with binary labels: `{"prompt": [...], "completion": [...], "label": true | false}`; true = desirable."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from post_training.data.rows import Example, InvalidRow, Message, Rules, answer, check_tools, prompt, without_repeats
from post_training.data.tokens.encode import Encoded, Ids, Lists, Mask, common_prefix, prompt_and_answer, sizes
from post_training.data.tokens.engine import flat

KEY = "completion"
_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema([("prompt_ids", _IDS), ("completion_ids", _IDS), ("label", _IDS)])


class LabelledCompletion(Example):
    """A validated row."""

    prompt: list[Message]
    completion: list[Message]
    label: bool


def validate(row: dict[str, Any], rules: Rules) -> LabelledCompletion:
    """A completion that ends the conversation, and a label that is true or false, not 1 or 0. Raises InvalidRow."""
    row = without_repeats(row, ("completion",))
    asked = prompt(row)
    completion = answer(row, "completion", asked, rules)
    label = row.get("label")
    if not isinstance(label, bool):
        raise InvalidRow(
            "missing_column" if label is None else "wrong_type", f"label is {label!r}, expected true or false"
        )
    return {"prompt": asked, "completion": completion, "label": label, **check_tools(row)}


def conversations(row: LabelledCompletion) -> list[tuple[list[Message], bool]]:
    """The prompt as it is asked, and with its completion."""
    return [(row["prompt"], True), ([*row["prompt"], *row["completion"]], False)]


def columns(
    rows: list[LabelledCompletion], encoded: Encoded, train_on: str, dropped: Counter[str]
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
    prompt, completion = sizes(batch, "prompt_ids", "completion_ids")
    return prompt + completion, completion


def sequences(row: dict[str, Any]) -> list[tuple[str, Ids, Mask]]:
    """The prompt with its answer."""
    return [prompt_and_answer(row, "completion")]
