"""Rows that say the opposite of each other: one pair both ways round, one answer judged both good and bad."""

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
    verdicts = [_of_pairs(dataset) if paired else _of_labels(dataset) for dataset in datasets]
    subjects, sides = (np.concatenate(part) for part in zip(*verdicts, strict=True))
    _, group = np.unique(subjects, return_inverse=True)
    both = (np.bincount(group, sides) > 0) & (np.bincount(group, ~sides) > 0)
    found = np.flatnonzero(both[group])
    owners = [(dataset.name, number & ((1 << 40) - 1)) for dataset in datasets for number in dataset.numbers.tolist()]
    shown = found[np.argsort(group[found], kind="stable")][: 2 * _SHOWN].tolist()
    pairs = [[owners[place] for place in shown[start : start + 2]] for start in range(0, len(shown), 2)]
    told = [" and ".join(f"{name} row {row + 1:,}" for name, row in pair) for pair in pairs if len(pair) == 2]
    return {"rows": len(found), "examples": told}


def _of_pairs(dataset: Tokenized) -> tuple[Keys, np.ndarray]:
    """What each pair is about, whichever answer is the better one, and which that is."""
    chosen, rejected = _answers(dataset, "chosen_ids"), _answers(dataset, "rejected_ids")
    with np.errstate(over="ignore"):
        return np.minimum(chosen, rejected) * np.uint64(0x9E3779B97F4A7C15) + np.maximum(
            chosen, rejected
        ), chosen < rejected


def _of_labels(dataset: Tokenized) -> tuple[Keys, np.ndarray]:
    labels = np.array([int(value[0]) for value in dataset.values(dataset.documents, "label")], dtype=np.bool_)
    return _answers(dataset, "completion_ids"), labels


def _answers(dataset: Tokenized, column: str) -> Keys:
    """A hash of each row's prompt with one answer."""
    digests = []
    for prompt, answer in zip(
        dataset.values(dataset.documents, "prompt_ids"), dataset.values(dataset.documents, column), strict=True
    ):
        hashed = hashlib.blake2b(prompt.data, digest_size=8)
        hashed.update(answer.data)
        digests.append(hashed.digest())
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
