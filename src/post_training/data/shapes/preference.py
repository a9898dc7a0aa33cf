"""Pairs: `{"prompt": [...], "chosen": [...], "rejected": [...]}`, all messages; the better answer is `chosen`."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from post_training.data.rows import Example, InvalidRow, Message, Rules, answer, check_tools, differ_in_blanks, prompt
from post_training.data.tokens.encode import Encoded, Ids, Lists, Mask, common_prefix, prompt_and_answer, sizes
from post_training.data.tokens.engine import flat

KEY = "chosen"
_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema([("prompt_ids", _IDS), ("chosen_ids", _IDS), ("rejected_ids", _IDS)])


class Pair(Example):
    """A validated row."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def validate(row: dict[str, Any], rules: Rules) -> Pair:
    """Two different answers, each of which ends the conversation that the prompt began. Raises InvalidRow."""
    asked = prompt(row)
    chosen, rejected = (answer(row, key, asked, rules) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise InvalidRow("identical_pair")
    if differ_in_blanks(chosen, rejected):
        raise InvalidRow("identical_pair", "the answers differ in blanks only")
    return {"prompt": asked, "chosen": chosen, "rejected": rejected, **check_tools(row)}


def conversations(row: Pair) -> list[tuple[list[Message], bool]]:
    """The prompt as it is asked, and with each answer."""
    prompt = row["prompt"]
    return [(prompt, True), ([*prompt, *row["chosen"]], False), ([*prompt, *row["rejected"]], False)]


def columns(rows: list[Pair], encoded: Encoded, train_on: str, dropped: Counter[str]) -> tuple[Mask, dict[str, Lists]]:
    """Ids of the prompt that both answers share, and of each answer."""
    kept = np.ones(len(rows), dtype=np.bool_)
    made: list[tuple[Ids, Ids, Ids]] = []
    for number in range(len(rows)):
        prompt, chosen, rejected = (encoded[3 * number + text][0] for text in range(3))
        # An answer starts where the renderings diverge, which is before the prompt's end where tokens merge across it.
        shared = min(common_prefix(prompt, chosen), common_prefix(prompt, rejected))
        answers = chosen[shared:], rejected[shared:]
        if not len(answers[0]) or not len(answers[1]):
            dropped["no_trained_token"] += 1
        elif np.array_equal(*answers):
            dropped["identical_pair"] += 1
        else:
            made.append((prompt[:shared], *answers))
            continue
        kept[number] = False
    return kept, {name: flat([row[place] for row in made]) for place, name in enumerate(SCHEMA.names)}


def lengths(batch: pa.RecordBatch) -> np.ndarray:
    """Tokens of the prompt with the longer answer."""
    prompt, chosen, rejected = sizes(batch, *SCHEMA.names)
    return prompt + np.maximum(chosen, rejected)


def token_counts(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and both answers; trained are the answers."""
    prompt, chosen, rejected = sizes(batch, *SCHEMA.names)
    return prompt + chosen + rejected, chosen + rejected


def sequences(row: dict[str, Any]) -> list[tuple[str, Ids, Mask]]:
    """The prompt with each answer."""
    return [prompt_and_answer(row, name) for name in ("chosen", "rejected")]
