"""Tokenised datasets -> `rows.arrow`, the rows that a stage trains on, in the order of the file.

Which rows a weight chooses, and where they stand, is decided for each row by a hash of seed, dataset
name and row number alone: another dataset, or another weight elsewhere, moves nothing.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from post_training import manifest
from post_training.data import shapes
from post_training.data.packing import best_fit
from post_training.errors import DataError
from post_training.fingerprint import file_sha256
from post_training.task import Task

_IDS = pa.list_(pa.int32())
_BATCH_ROWS = 512
Ids = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass
class Tokenized:
    """One tokenised dataset, memory-mapped."""

    name: str
    weight: float
    columns: dict[str, list[tuple[Indices, Ids]]]
    """Of each list column, a batch at a time: offsets and values, views into the mapped files."""
    starts: list[int]
    """Index of each batch's first row, and the number of rows last."""
    numbers: Indices
    """Source row number of each row."""
    lengths: Indices
    tokens: Indices
    trained: Indices

    @classmethod
    def open(cls, name: str, weight: float, manifest_path: Path, shape: str) -> "Tokenized":
        """Open without reading the tokens."""
        batches = []
        for entry in manifest.read(manifest_path)["files"]:
            path = manifest_path.parent / entry["path"]
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
                batches += [reader.get_batch(index) for index in range(reader.num_record_batches)]
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{path}: cannot be read ({error}); delete {manifest_path} to make it again") from None
        columns = {
            column: [(b.column(column).offsets.to_numpy(), b.column(column).values.to_numpy()) for b in batches]
            for column in shapes.load(shape).SCHEMA.names
        }
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
        numbers = np.concatenate([batch.column("row").to_numpy() for batch in batches])
        lengths = np.concatenate([shapes.load(shape).lengths(batch) for batch in batches])
        counts = [np.concatenate(c) for c in zip(*map(shapes.load(shape).token_counts, batches), strict=True)]
        return cls(name, weight, columns, starts, numbers, lengths, *counts)

    def values(self, column: str, index: int) -> Ids:
        """Token ids of one row, a view into the mapped file."""
        block = bisect_right(self.starts, index) - 1
        offsets, values = self.columns[column][block]
        local = index - self.starts[block]
        return values[offsets[local] : offsets[local + 1]]


@dataclass
class Documents:
    """The chosen documents of all datasets, in training order."""

    dataset: Indices
    """Index of the dataset of each."""
    index: Indices
    """Row in that dataset's file."""
    lengths: Indices


def run(task: Task) -> None:
    """Body of the rule `mix`."""
    config = task.config
    capacity, shape = config["max_seq_length"], config["rows"]
    datasets = [
        Tokenized.open(entry["name"], entry["weight"], task.inputs[entry["name"]], shape)
        for entry in config["datasets"]
    ]
    documents, table = choose(datasets, config["seed"], capacity)
    if not len(documents.index):
        raise DataError(
            f"{task.directory}: no row is left: all are longer than max_seq_length={capacity} or left out by their weight; "
            "raise one of them"
        )
    rows: Sequence[Indices] = np.arange(len(documents.index))[:, None]  # type: ignore[assignment]
    if config["packing"]:
        packed = best_fit(documents.lengths, capacity)
        # Rows come out from long to short documents; a seeded order mixes them again.
        rows = [
            packed[i] for i in np.argsort(row_keys(config["seed"], "packed", np.arange(len(packed))), kind="stable")
        ]
    task.directory.mkdir(parents=True, exist_ok=True)
    path = task.directory / "rows.arrow"
    unfinished = path.with_suffix(".arrow.tmp")
    write_rows(unfinished, datasets, documents, rows, shape, packing=config["packing"], table=table)
    tokens, trained = (sum(entry[key] for entry in table) for key in ("tokens", "trained_tokens"))
    unfinished.replace(path)
    efficiency = tokens / (len(rows) * capacity) if config["packing"] else None
    _print_table(table, len(rows), tokens, trained, efficiency)
    dropped: dict[str, int] = {}
    for entry in table:
        for reason, count in entry["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count["rows"]
    task.finish(
        rows_in=sum(len(dataset.lengths) for dataset in datasets),
        rows_out=len(rows),
        documents=len(documents.index),
        dropped=dropped,
        tokens=tokens,
        trained_tokens=trained,
        packing_efficiency=round(efficiency, 5) if efficiency is not None else None,
        table=table,
        files=[{"path": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}],
    )


def choose(datasets: list[Tokenized], seed: int, capacity: int) -> tuple[Documents, list[dict[str, Any]]]:
    """Rows by weight, without those longer than `capacity`, in training order; and a table of what was chosen.

    A weight w takes floor(w) copies of every row and the rest of the rows with the smallest keys, so a
    larger weight only adds rows.
    """
    chosen, table = [], []
    for position, dataset in enumerate(datasets):
        fits = dataset.lengths <= capacity
        index = np.flatnonzero(fits)
        copies, fraction = divmod(dataset.weight, 1.0)
        some = round(fraction * len(index))
        by_key = np.argsort(row_keys(seed, f"choose {dataset.name}", dataset.numbers[index]), kind="stable")
        parts = [(index, copy) for copy in range(int(copies))] + [(index[by_key[:some]], int(copies))]
        for rows, copy in parts:
            keys = row_keys(seed, f"order {dataset.name} {copy}", dataset.numbers[rows])
            chosen.append((np.full(len(rows), position), rows, keys))
        long = ~fits
        dropped = (
            {"too_long": {"rows": int(long.sum()), "tokens": int(dataset.lengths[long].sum())}} if long.any() else {}
        )
        used = sum(len(rows) for rows, _ in parts)
        table.append(
            {
                "name": dataset.name,
                "weight": dataset.weight,
                "rows_available": len(index),
                "rows_used": used,
                "tokens": 0,  # counted while the rows are written
                "trained_tokens": 0,
                "dropped": dropped,
            }
        )
    owner, index, keys = (np.concatenate(column) for column in zip(*chosen, strict=True))
    order = np.argsort(keys, kind="stable")
    owner, index = owner[order], index[order]
    lengths = np.empty(len(index), dtype=np.int64)
    for position, dataset in enumerate(datasets):
        lengths[owner == position] = dataset.lengths[index[owner == position]]
    return Documents(owner, index, lengths), table


def row_keys(seed: int, purpose: str, numbers: Indices) -> Keys:
    """A pseudo-random uint64 a row from seed, purpose and row number (the finaliser of splitmix64)."""
    salt = int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        keys = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(keys ^ (keys >> np.uint64(31)), dtype=np.uint64)


def write_rows(
    path: Path,
    datasets: list[Tokenized],
    documents: Documents,
    rows: Sequence[Indices],
    shape: str,
    *,
    packing: bool,
    table: list[dict[str, Any]],
) -> None:
    """Gather the rows' tokens from the mapped files into an Arrow stream, counting them in the table.

    The stream format is what `datasets.Dataset.from_file` maps into memory. `seq_lengths` keeps the
    documents of a packed row apart in the collator.
    """
    names = [*shapes.load(shape).SCHEMA.names, *(["seq_lengths"] if packing else [])]
    tokens, trained = np.zeros(len(datasets), dtype=np.int64), np.zeros(len(datasets), dtype=np.int64)
    schema = pa.schema([(name, _IDS) for name in names])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(rows), _BATCH_ROWS):
            batch = rows[start : start + _BATCH_ROWS]
            members = np.concatenate(batch)
            owners, places = documents.dataset[members].tolist(), documents.index[members].tolist()
            row_ends = np.cumsum([len(row) for row in batch])
            arrays = []
            for name in names:
                if name == "seq_lengths":
                    arrays.append(_lists(documents.lengths[members].astype(np.int32), row_ends))
                    continue
                parts = [datasets[o].values(name, i) for o, i in zip(owners, places, strict=True)]
                arrays.append(_lists(np.concatenate(parts), np.cumsum([len(part) for part in parts])[row_ends - 1]))
            for o, i in zip(owners, places, strict=True):
                tokens[o] += datasets[o].tokens[i]
                trained[o] += datasets[o].trained[i]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    for entry, entry_tokens, entry_trained in zip(table, tokens.tolist(), trained.tolist(), strict=True):
        entry.update(tokens=entry_tokens, trained_tokens=entry_trained)


def _lists(flat: Ids, ends: Indices) -> pa.ListArray:
    """The flat values as lists that end at `ends`."""
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _print_table(table: list[dict[str, Any]], rows: int, tokens: int, trained: int, efficiency: float | None) -> None:
    for entry in table:
        long = entry["dropped"].get("too_long", {"rows": 0, "tokens": 0})
        print(
            f"{entry['name']}: weight {entry['weight']:g}, {entry['rows_used']:,} of {entry['rows_available']:,} rows, "
            f"{entry['tokens']:,} tokens ({entry['tokens'] / max(tokens, 1):.1%}); too long: {long['rows']:,} rows, {long['tokens']:,} tokens"
        )
    packed = f", packing efficiency {efficiency:.4f}" if efficiency is not None else ""
    print(f"{rows:,} rows, {tokens:,} tokens, {trained:,} trained{packed}")
