"""Which rows each step saw, as a hash a step in `logs/samples.jsonl`: a resumed run proves that it sees the same.

The hash of a row is over its number in the mix and its integers (token ids, labels, lengths); that of a
step is the sum over its rows, modulo 2**64. So it does not depend on how the rows were spread over
ranks and micro-batches, nor on padding.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from post_training.core import json_lines
from post_training.core.errors import UserError
from post_training.data.collate import collate_step
from post_training.data.deal import Dealing
from post_training.data.loss_mask import IGNORED

KEY = "seen"
"""Name under which a batch carries its Seen."""


@dataclass
class Seen:
    """The rows of a micro-batch, or of several."""

    rows: list[int] = field(default_factory=list)
    """Numbers in the mix's training order."""
    digest: int = 0
    """Sum of their hashes, as int64 with wrap-around."""
    tokens: int = 0
    """All that are not padding."""
    trained_tokens: int = 0
    """Those with a label (SFT), or in an answer (of a pair: in both)."""
    padding: int = 0
    """Places that the model computes for nothing."""

    def __add__(self, other: "Seen") -> "Seen":
        tokens, trained = self.tokens + other.tokens, self.trained_tokens + other.trained_tokens
        digest = _int64(self.digest + other.digest)
        return Seen(self.rows + other.rows, digest, tokens, trained, self.padding + other.padding)


class MicroBatches(Sequence[Any]):
    """The batches of one rank, one after the other over all steps, each with a Seen that stays on the CPU.

    The rank's part of a step is read and collated at once, when its first batch is asked for: Transformers takes all batches of a
    step before it computes the first.
    """

    def __init__(self, rows: Any, dealing: Dealing, rank: int, collator: Any) -> None:
        self.rows, self.dealing, self.rank, self.collator = rows, dealing, rank, collator
        self._step, self._batches = -1, list[dict[str, Any]]()

    def __len__(self) -> int:
        return len(self.rows) // self.dealing.rows * self.dealing.accumulation

    def __getitem__(self, index: Any) -> Any:
        step, number = divmod(index, self.dealing.accumulation)
        if step != self._step:
            self._step, self._batches = step, self._collated(step * self.dealing.rows)
        return {**self._batches[number]}

    def _collated(self, first: int) -> list[dict[str, Any]]:
        dealt = self.dealing.deal(self.rows.tokens(range(first, first + self.dealing.rows)), self.rank)
        parts, noted = [], []
        for places in dealt:
            rows, seen = [self.rows[first + place] for place in places], Seen()
            for place, row in zip(places, rows, strict=True):
                seen += Seen([first + place], row_digest(first + place, row))
            parts.append(rows)
            noted.append(seen)
        batches = collate_step(self.collator, parts)
        return [{**batch, KEY: seen + count(batch)} for batch, seen in zip(batches, noted, strict=True)]


def count(batch: dict[str, Any]) -> Seen:
    """Tokens and padding of a batch that is still on the CPU."""
    answers, layout = batch.get("completion_mask"), batch.get("layout") or {}
    trained = (batch["labels"] != IGNORED).sum() if answers is None else answers.sum()
    inputs = layout.get("inputs", batch)
    places, mask = inputs["input_ids"].numel(), inputs.get("attention_mask")
    tokens = places if mask is None else int(mask.sum())
    return Seen(tokens=tokens, trained_tokens=int(trained), padding=places - tokens)


def row_digest(number: int, row: dict[str, Any]) -> int:
    """Hash of one row, as int64; columns that hold no integers (log-probabilities) do not count."""
    hashed = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8)
    for name in sorted(row):
        values = np.asarray(row[name])
        if values.dtype.kind in "iub":
            hashed.update(f"{name} {values.size} ".encode())
            hashed.update(np.ascontiguousarray(values, dtype="<i8").tobytes())
    return int.from_bytes(hashed.digest(), "little", signed=True)


def _int64(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def step_hash(digests: list[int]) -> str:
    """Hash of a step from those of all ranks, 16 hexadecimal digits."""
    return f"{sum(digests) % (1 << 64):016x}"


class SamplesLog:
    """`logs/samples.jsonl`, one line a step over all attempts; a step taken again must have seen the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = {line["step"]: line["hash"] for line in read_samples(path)}

    def add(self, step: int, rows: int, digests: list[int]) -> None:
        """Note a step. Raises UserError when an earlier attempt saw other rows at it."""
        found = step_hash(digests)
        before = self.known.get(step)
        if before is None:
            self.known[step] = found
            json_lines.append(self.path, {"step": step, "rows": rows, "hash": found})
        elif before != found:
            raise UserError(
                f"{self.path}: step {step} saw other rows than before this run was resumed (hash {found}, was {before}); "
                "the mixed data, or how they are read, have changed under it. Restore them, or train under another configuration"
            )


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of `logs/samples.jsonl`: `step`, `rows`, `hash`; a last one that was cut off is left out."""
    return list(json_lines.read(path))
