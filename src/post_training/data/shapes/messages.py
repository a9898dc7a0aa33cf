"""Conversations: `{"messages": [{"role", "content"}, ...], "tools"?: [...]}`, ending with the assistant."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from post_training.data.loss_mask import COLUMN, IGNORED, with_loss_mask
from post_training.data.rows import (
    Example,
    Message,
    Rules,
    check_order,
    check_tools,
    check_trained,
    end_with_assistant,
    turns,
)
from post_training.data.tokens.encode import Encoded, Ids, Lists, Mask, sizes

KEY = "messages"
SCHEMA = pa.schema([(COLUMN, pa.list_(pa.int32()))])


class Conversation(Example):
    """A validated row."""

    messages: list[Message]


def validate(row: dict[str, Any], rules: Rules) -> Conversation:
    """Turns in order, the assistant's last. Raises InvalidRow."""
    messages = end_with_assistant(turns(row, "messages"), rules)
    check_order(messages)
    check_trained(messages)
    return {"messages": messages, **check_tools(row)}


def conversations(row: Conversation) -> list[tuple[list[Message], bool]]:
    """The complete conversation."""
    return [(row["messages"], False)]


def columns(
    rows: list[Conversation], encoded: Encoded, train_on: str, dropped: Counter[str]
) -> tuple[Mask, dict[str, Lists]]:
    """Ids of the full rendering, marked where the template says that it is generated, or everywhere."""
    ids, offsets = encoded.ids, encoded.offsets
    trained = np.ones(len(ids), dtype=np.bool_) if train_on == "all" else encoded.mask
    kept = encoded.sums(trained) > 0
    if not kept.all():
        dropped["no_trained_token"] += int((~kept).sum())
        sizes = np.diff(offsets)
        tokens = np.repeat(kept, sizes)
        ids, trained = ids[tokens], trained[tokens]
        offsets = np.concatenate([[0], np.cumsum(sizes[kept])])
    return kept, {COLUMN: (with_loss_mask(ids, trained), offsets)}


def lengths(batch: pa.RecordBatch) -> np.ndarray:
    """Tokens of the conversation."""
    return sizes(batch, COLUMN)[0]


def token_counts(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, and those that are trained on."""
    tokens = batch.column(COLUMN)
    before = np.concatenate([[0], np.cumsum(tokens.values.to_numpy() >= 0)])
    return lengths(batch), np.diff(before[tokens.offsets.to_numpy()]).astype(np.int64)


def sequences(row: dict[str, Any]) -> list[tuple[str, Ids, Mask]]:
    """One a document; a packed row holds several, `seq_lengths` long."""
    ids, labels = np.asarray(row["input_ids"]), np.asarray(row["labels"])
    cuts: Any = np.cumsum(row["seq_lengths"])[:-1] if "seq_lengths" in row else []
    return [
        ("messages", part, own != IGNORED)
        for part, own in zip(np.split(ids, cuts), np.split(labels, cuts), strict=True)
    ]
