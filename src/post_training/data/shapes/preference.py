"""Pairs: `{"prompt": [...], "chosen": [...], "rejected": [...]}`, all messages; the better answer is `chosen`.

A pair may have a `margin`, a number that says by how much it is better, which reward models are trained by.
"""

from collections import Counter
from typing import Any, NotRequired

import numpy as np
import pyarrow as pa

from post_training.data.rows import (
    Example,
    InvalidRow,
    Message,
    Rules,
    answer,
    check_tools,
    differ_in_blanks,
    prompt,
    without_repeats,
)
from post_training.data.tokens.encode import Encoded, Ids, Lists, Mask, common_prefix, prompt_and_answer, sizes
from post_training.data.tokens.engine import flat
from post_training.data.vendor_forms import is_transcript

KEY = "chosen"
_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema([("prompt_ids", _IDS), ("chosen_ids", _IDS), ("rejected_ids", _IDS)])
OPTIONAL = ("margin",)
"""The bits of a float32."""
_LARGEST = float(np.finfo(np.float32).max)


class Pair(Example):
    """A validated row."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: NotRequired[float]


def validate(row: dict[str, Any], rules: Rules) -> Pair:
    """Two different answers, each of which ends the conversation that the prompt began. Raises InvalidRow."""
    row = without_repeats(row, ("chosen", "rejected"))
    asked = prompt(row)
    chosen, rejected = (answer(row, key, asked, rules) for key in ("chosen", "rejected"))
    if all(len(turns) == 1 and is_transcript(str(turns[0]["content"])) for turns in (chosen, rejected)):
        raise InvalidRow("no_shared_prefix", "both answers are transcripts, Human: ... Assistant: ...")
    if chosen == rejected:
        raise InvalidRow("identical_pair")
    if differ_in_blanks(chosen, rejected):
        raise InvalidRow("identical_pair", "the answers differ in blanks only")
    pair: Pair = {"prompt": asked, "chosen": chosen, "rejected": rejected}
    if tools := check_tools(row):
        pair["tools"] = tools["tools"]
    if row.get("margin") is not None:
        pair["margin"] = _check_margin(row["margin"])
    return pair


def _check_margin(found: Any) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float | np.integer | np.floating):
        raise InvalidRow("wrong_type", f"margin is {found!r:.80}, expected a number")
    if not abs(float(found)) <= _LARGEST:
        raise InvalidRow("wrong_type", f"margin is {found!r:.80}, expected a number that float32 has")
    return float(found)


def conversations(row: Pair) -> list[tuple[list[Message], bool]]:
    """The prompt as it is asked, and with each answer."""
    prompt = row["prompt"]
    return [(prompt, True), ([*prompt, *row["chosen"]], False), ([*prompt, *row["rejected"]], False)]


def columns(rows: list[Pair], encoded: Encoded, train_on: str, dropped: Counter[str]) -> tuple[Mask, dict[str, Lists]]:
    """Ids of the prompt that both answers share, and of each answer."""
    kept = np.ones(len(rows), dtype=np.bool_)
    made: list[tuple[Ids, ...]] = []
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
            given = rows[number].get("margin")
            bits = np.array([] if given is None else [given], dtype=np.float32).view(np.int32)
            made.append((prompt[:shared], *answers, bits))
            continue
        kept[number] = False
    found = {name: flat([row[place] for row in made]) for place, name in enumerate([*SCHEMA.names, *OPTIONAL])}
    return kept, {name: lists for name, lists in found.items() if name in SCHEMA.names or len(lists[0])}


def lengths(batch: pa.RecordBatch) -> np.ndarray:
    """Tokens of the prompt with the longer answer."""
    prompt, chosen, rejected = sizes(batch, *SCHEMA.names)
    return prompt + np.maximum(chosen, rejected)


def token_counts(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and both answers; trained are the answers."""
    prompt, chosen, rejected = sizes(batch, *SCHEMA.names)
    return prompt + chosen + rejected, chosen + rejected


def margin(row: dict[str, Any]) -> float:
    """The margin of a training row; 0, which changes no loss, where it has none."""
    bits = row.get("margin", ())
    return float(bits.view(np.float32)[0]) if len(bits) else 0.0


def sequences(row: dict[str, Any]) -> list[tuple[str, Ids, Mask]]:
    """The prompt with each answer."""
    return [prompt_and_answer(row, name) for name in ("chosen", "rejected")]
