"""Rows with opposite labels: one pair both ways round, or one completion labelled both desirable and undesirable."""

import hashlib
from typing import Any

import numpy as np

from post_training.data.mixing.epochs import Keys
from post_training.data.mixing.shards import Tokenized

_SHOWN = 3


def contradictory(datasets: list[Tokenized]) -> dict[str, Any] | None:
    """`rows` that another row contradicts, of any of the datasets, and some `examples`; None for conversations."""
    columns = datasets[0].documents.dtype.names or ()
    if "prompt_ids" not in columns:
        return None
    paired = "chosen_ids" in columns
    labelled = [_pairs(dataset) if paired else _labels(dataset) for dataset in datasets]
    subjects, sides = (np.concatenate(part) for part in zip(*labelled, strict=True))
    _, group = np.unique(subjects, return_inverse=True)
    both = (np.bincount(group, sides) > 0) & (np.bincount(group, ~sides) > 0)
    found = np.flatnonzero(both[group])
    names = [(dataset.name, number & ((1 << 40) - 1)) for dataset in datasets for number in dataset.numbers.tolist()]
    shown = [names[row] for row in found[np.argsort(group[found], kind="stable")][: 2 * _SHOWN]]
    texts = [f"{name} row {row:,}" for name, row in shown]
    examples = [f"{one} and {other}" for one, other in zip(texts[::2], texts[1::2], strict=False)]
    return {"rows": len(found), "examples": examples}


def _pairs(dataset: Tokenized) -> tuple[Keys, np.ndarray]:
    """A key of each pair that is the same the other way round, and which way round it is."""
    chosen, rejected = _hashes(dataset, "chosen_ids"), _hashes(dataset, "rejected_ids")
    with np.errstate(over="ignore"):
        keys = np.minimum(chosen, rejected) * np.uint64(0x9E3779B97F4A7C15) + np.maximum(chosen, rejected)
    return keys, chosen < rejected


def _labels(dataset: Tokenized) -> tuple[Keys, np.ndarray]:
    labels = np.array([int(value[0]) for value in dataset.values(dataset.documents, "label")], dtype=np.bool_)
    return _hashes(dataset, "completion_ids"), labels


def _hashes(dataset: Tokenized, column: str) -> Keys:
    """A hash of each row's prompt with one completion."""
    columns = (dataset.values(dataset.documents, name) for name in ("prompt_ids", column))
    texts = (prompt.tobytes() + completion.tobytes() for prompt, completion in zip(*columns, strict=True))
    return np.frombuffer(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts), dtype=np.uint64)
