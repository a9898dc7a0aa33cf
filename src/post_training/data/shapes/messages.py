"""Conversations: `{"messages": [{"role", "content"}, ...], "tools"?: [...]}`, ending with the assistant."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from post_training.data.encode import IGNORED, Encoded, Ids, Lists, Mask
from post_training.data.rows import Rules, check_order, check_tools, end_with_assistant, turns

KEY = "messages"
SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])


def validate(row: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """Turns in order, the assistant's last."""
    messages = end_with_assistant(turns(row, "messages"), rules)
    check_order(messages)
    return {"messages": messages, **check_tools(row)}


def conversations(row: dict[str, Any]) -> list[tuple[list[dict[str, Any]], bool]]:
    """The whole conversation."""
    return [(row["messages"], False)]


def columns(
    rows: list[dict[str, Any]], encoded: Encoded, train_on: str, dropped: Counter[str]
) -> tuple[Mask, dict[str, Lists]]:
    """Ids of the whole rendering; labels on what the template marks as generated, or on all of it."""
    ids, offsets = encoded.ids, encoded.offsets
    mask = np.ones(len(ids), dtype=np.bool_) if train_on == "all" else encoded.mask
    kept = encoded.sums(mask) > 0
    if not kept.all():
        dropped["no_trained_token"] += int((~kept).sum())
        sizes = np.diff(offsets)
        tokens = np.repeat(kept, sizes)
        ids, mask = ids[tokens], mask[tokens]
        offsets = np.concatenate([[0], np.cumsum(sizes[kept])])
    labels = np.where(mask, ids, np.int32(IGNORED))
    return kept, {"input_ids": (ids, offsets), "labels": (labels, offsets)}


def lengths(batch: pa.RecordBatch) -> np.ndarray:
    """Tokens of the conversation."""
    return np.diff(batch.column("input_ids").offsets.to_numpy()).astype(np.int64)


def token_counts(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, and those with a label."""
    labels = batch.column("labels")
    before = np.concatenate([[0], np.cumsum(labels.values.to_numpy() != IGNORED)])
    return lengths(batch), np.diff(before[labels.offsets.to_numpy()]).astype(np.int64)


def sequences(row: dict[str, Any]) -> list[tuple[str, Ids, Mask]]:
    """One a document; a packed row holds several, `seq_lengths` long."""
    ids, labels = np.asarray(row["input_ids"]), np.asarray(row["labels"])
    cuts: Any = np.cumsum(row["seq_lengths"])[:-1] if "seq_lengths" in row else []
    return [
        ("messages", part, own != IGNORED)
        for part, own in zip(np.split(ids, cuts), np.split(labels, cuts), strict=True)
    ]
