"""Which rows each step saw, as a hash a step in `logs/samples.jsonl`: a resumed run proves that it sees the same.

The hash of a row is over its number in the mix and its integers (token ids, labels, lengths); that of a
step is the sum over its rows, modulo 2**64. So it does not depend on how the rows were spread over
ranks and micro-batches, nor on padding.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from post_training.core import json_lines
from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically

KEY = "seen"
"""Name under which a batch carries its Seen."""
_ROW = "row"


@dataclass
class Seen:
    """The rows of a micro-batch, or of several."""

    rows: list[int] = field(default_factory=list)
    """Numbers in the mix's training order."""
    digest: int = 0
    """Sum of their hashes, as int64 with wrap-around."""

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.rows + other.rows, _int64(self.digest + other.digest))


class NumberedRows(Sequence[Any]):
    """Rows that know their number; for a collator made by `remembering`."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return {**self.rows[index], _ROW: int(index)}


class Remembering:
    """A collator that notes which rows it was given, before the trainer's own one makes tensors of them."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The trainer's batch, with a Seen that stays on the CPU."""
        seen = Seen()
        for example in examples:
            number = example.pop(_ROW)
            seen += Seen([number], row_digest(number, example))
        return {**self.collator(examples), KEY: seen}


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
        lines = read_samples(path)
        self.known = {line["step"]: line["hash"] for line in lines}
        if path.is_file():  # without a last line that a kill has cut off
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, step: int, rows: int, digests: list[int]) -> None:
        """Note a step. Raises UserError when an earlier attempt saw other rows at it."""
        found = step_hash(digests)
        before = self.known.get(step)
        if before is None:
            self.known[step] = found
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "rows": rows, "hash": found}) + "\n")
        elif before != found:
            raise UserError(
                f"{self.path}: step {step} saw other rows than before this run was resumed (hash {found}, was {before}); "
                "the mixed data, or how they are read, have changed under it. Restore them, or train under another configuration"
            )


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of `logs/samples.jsonl`: `step`, `rows`, `hash`; a last one that was cut off is left out."""
    return list(json_lines.read(path))
