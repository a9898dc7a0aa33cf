"""Conversations: `{"messages": [{"role", "content"}, ...], "tools"?: [...]}`, ending with the assistant."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from post_training.data.chat_template import ChatTemplate
from post_training.data.encode import IGNORED, Encoder, Ids, Mask
from post_training.data.rows import Rules, check_order, check_tools, end_with_assistant, turns

KEY = "messages"
SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])


def validate(row: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """Turns in order, the assistant's last."""
    messages = end_with_assistant(turns(row, "messages"), rules)
    check_order(messages)
    return {"messages": messages, **check_tools(row)}


def tokenize(
    rows: list[dict[str, Any]], template: ChatTemplate, encoder: Encoder, dropped: Counter[str]
) -> list[dict[str, Any]]:
    """Ids of the whole rendering, and labels on what the template marks as generated."""
    texts, spans, kept = [], [], []
    for row in rows:
        try:
            text, trained = template.render(row["messages"], row.get("tools"))
        except ValueError as error:
            dropped[str(error).partition(":")[0]] += 1
            continue
        texts.append(text)
        spans.append(trained)
        kept.append(row["row"])
    made = []
    for number, (ids, mask) in zip(kept, encoder.encode(texts, spans), strict=True):
        if mask.any():
            made.append({"input_ids": ids, "labels": np.where(mask, ids, np.int32(IGNORED)), "row": number})
        else:
            dropped["no_trained_token"] += 1
    return made


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
