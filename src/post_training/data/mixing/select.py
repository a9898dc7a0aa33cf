"""Selection of a dataset's rows for a mix, their repetitions and documents: pure functions on arrays.

Every choice about a row follows from a hash of seed, dataset name and row, or of its content: another
dataset, or another amount elsewhere, moves nothing.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from post_training.data.loss_mask import COLUMN, ids_of
from post_training.data.mixing.epochs import Keys, row_keys, scrambled
from post_training.data.mixing.shards import Indices, Tokenized

AMOUNTS = ("weight", "rows", "tokens")
Mask = npt.NDArray[np.bool_]


@dataclass
class Documents:
    """Documents of one dataset: full rows, and the windows into which long rows are cut."""

    records: npt.NDArray[Any]
    """Of `view.document_type`."""
    row: Indices
    """Row of the dataset that each is of."""
    lengths: Indices
    tokens: Indices
    trained: Indices

    def of_rows(self, rows: Mask) -> "Documents":
        """Those of some rows."""
        keep = rows[self.row]
        return Documents(self.records[keep], self.row[keep], self.lengths[keep], self.tokens[keep], self.trained[keep])


def fit(dataset: Tokenized, capacity: int, overlong: str) -> Documents:
    """Rows of at most `capacity` tokens as they are; longer ones dropped, cut off after `capacity` tokens, or split.

    A window without a token that is trained on is left out. Its first token never is: nothing predicts it.
    """
    long = dataset.lengths > capacity
    short = np.flatnonzero(~long)
    kept = Documents(
        dataset.documents[short], short, dataset.lengths[short], dataset.tokens[short], dataset.trained[short]
    )
    if overlong == "drop" or not long.any():
        return kept
    sizes = dataset.lengths[long]
    parts = np.ones(len(sizes), dtype=np.int64) if overlong == "truncate" else -(-sizes // capacity)
    row = np.repeat(np.flatnonzero(long), parts)
    start = (np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts, parts)) * capacity
    lengths = np.minimum(dataset.lengths[row] - start, capacity)
    records = dataset.documents[row]
    records[COLUMN] += start
    records[f"{COLUMN}_length"] = lengths
    trained = np.array([np.count_nonzero(tokens[1:] >= 0) for tokens in dataset.values(records, COLUMN)])
    windows = Documents(records, row, lengths, lengths, trained)
    joined = [
        np.concatenate([getattr(kept, name), getattr(windows, name)[trained > 0]]) for name in Documents.__annotations__
    ]
    order = np.argsort(joined[1], kind="stable")
    return Documents(*(column[order] for column in joined))


def copies(asked: tuple[str, float], keys: Keys, tokens: Indices) -> Indices:
    """How often each row is used: complete passes over all, and once more those with the smallest keys.

    So a larger amount only adds rows.

    Args:
        asked: `weight` (passes), `rows` or `tokens` (the fewest rows that reach so many), and how much of it.
        keys: of each row.
        tokens: of each row.
    """
    kind, wanted = asked
    number, total = len(keys), int(tokens.sum())
    found = np.zeros(number, dtype=np.int64)
    if not total:
        return found
    by_key = np.argsort(keys, kind="stable")
    if kind == "weight":
        passes, fraction = divmod(wanted, 1.0)
        more = round(fraction * number)
    elif kind == "rows":
        passes, more = divmod(int(wanted), number)
    else:
        passes, rest = divmod(int(wanted), total)
        more = int(np.searchsorted(np.cumsum(tokens[by_key]), rest)) + 1 if rest else 0
    found += int(passes)
    found[by_key[:more]] += 1
    return found


def amount(entry: Mapping[str, Any]) -> tuple[str, float]:
    """`weight`, `rows` or `tokens`, the one that a dataset is given, and how much of it."""
    return next((kind, entry[kind]) for kind in AMOUNTS if entry.get(kind) is not None)


def contents(dataset: Tokenized) -> Keys:
    """A hash of each row's tokens, equal for equal rows of any dataset.

    Of pairs and unpaired completions only the prompt counts, so that no prompt is in training and evaluation both.
    """
    marked = COLUMN in (dataset.documents.dtype.names or ())
    values = dataset.values(dataset.documents, COLUMN if marked else "prompt_ids")
    ids = (ids_of(tokens) for tokens in values) if marked else values
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in ids)
    return np.frombuffer(digests, dtype=np.uint64)


def held_out(hashes: Keys, fraction: float, seed: int) -> Mask:
    """Rows held out for evaluation: about this share of them, by content, so that equal rows go together."""
    salt = row_keys(seed, "held out", np.zeros(1, dtype=np.int64))
    return scrambled(hashes ^ salt) < np.uint64(min(fraction, 1.0) * (2**64 - 1))
