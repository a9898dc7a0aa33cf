"""Tokenised datasets -> the rows that a stage trains on: an index over their tokens, which stay where they are.

Which rows a weight chooses, and where they stand, is decided for each row by a hash of seed, dataset
name and row number alone: another dataset, or another weight elsewhere, moves nothing.
"""

import math
import os
from typing import Any

import numpy as np

from post_training.data.epochs import KEY_TYPE, row_keys, save, write_epoch
from post_training.data.shards import Indices, Tokenized
from post_training.data.view import epoch_path
from post_training.errors import DataError
from post_training.fingerprint import file_sha256
from post_training.task import Task


def run(task: Task) -> None:
    """Body of the rule `mix`."""
    config = task.config
    capacity, shape = config["max_seq_length"], config["rows"]
    datasets: list[Tokenized] = []
    for entry in config["datasets"]:
        shards = sum(len(dataset.files) for dataset in datasets)
        datasets.append(Tokenized.open(entry["name"], task.inputs[entry["name"]], shape, shards))

    documents, keys, table = [], [], []
    for entry, dataset in zip(config["datasets"], datasets, strict=True):
        fits = np.flatnonzero(dataset.lengths <= capacity)
        copies = copies_of(dataset, fits, entry["weight"], config["seed"])
        used = fits[copies > 0]
        documents.append(dataset.documents[used])
        found = np.zeros(len(used), dtype=KEY_TYPE)
        found["key"] = row_keys(config["seed"], f"order {dataset.name}", dataset.numbers[used])
        found["copies"], found["length"] = copies[copies > 0], dataset.lengths[used]
        keys.append(found)
        table.append(_entry(entry, dataset, fits, copies, capacity))
    if not sum(entry["rows_used"] for entry in table):
        raise DataError(
            f"{task.directory}: no row is left: all are longer than max_seq_length={capacity} or left out by their weight; "
            "raise one of them"
        )

    task.directory.mkdir(parents=True, exist_ok=True)
    files = [task.directory / "documents.npy", task.directory / "keys.npy"]
    for path, arrays in zip(files, (documents, keys), strict=True):
        save(path, np.concatenate(arrays))
    rows = write_epoch(task.output, 0, config)
    # What a training of the planned length needs; a longer one adds to it (epochs.lay_out).
    epochs = max(1, -(-(task.runtime.get("training_rows") or 0) // rows), math.ceil(task.runtime.get("epochs") or 0))
    for number in range(1, epochs):
        write_epoch(task.output, number, config)
    files += [epoch_path(task.output, number) for number in range(epochs)]
    tokens, trained = (sum(entry[key] for entry in table) for key in ("tokens", "trained_tokens"))
    efficiency = tokens / (rows * capacity) if config["packing"] else None
    _print_table(table, rows, tokens, trained, efficiency)
    dropped: dict[str, int] = {}
    for entry in table:
        for reason, count in entry["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count["rows"]
    task.finish(
        rows_in=sum(len(dataset.lengths) for dataset in datasets),
        rows_out=rows,
        documents=sum(len(part) for part in documents),
        dropped=dropped,
        tokens=tokens,
        trained_tokens=trained,
        packing_efficiency=round(efficiency, 5) if efficiency is not None else None,
        table=table,
        shards=[
            {**file, "path": os.path.relpath(file["path"], task.directory.absolute())}
            for dataset in datasets
            for file in dataset.files
        ],
        files=[{"path": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files],
    )


def copies_of(dataset: Tokenized, rows: Indices, weight: float, seed: int) -> Indices:
    """How often each of the rows is used: floor(weight) times, and once more those with the smallest keys."""
    whole, fraction = divmod(weight, 1.0)
    copies = np.full(len(rows), int(whole))
    by_key = np.argsort(row_keys(seed, f"choose {dataset.name}", dataset.numbers[rows]), kind="stable")
    copies[by_key[: round(fraction * len(rows))]] += 1
    return copies


def _entry(entry: dict[str, Any], dataset: Tokenized, fits: Indices, copies: Indices, capacity: int) -> dict[str, Any]:
    """What became of one dataset."""
    long = dataset.lengths > capacity
    dropped = {"too_long": {"rows": int(long.sum()), "tokens": int(dataset.lengths[long].sum())}} if long.any() else {}
    return {
        "name": dataset.name,
        "weight": entry["weight"],
        "rows_available": len(fits),
        "rows_used": int(copies.sum()),
        "tokens": int(dataset.tokens[fits] @ copies),
        "trained_tokens": int(dataset.trained[fits] @ copies),
        "dropped": dropped,
    }


def _print_table(table: list[dict[str, Any]], rows: int, tokens: int, trained: int, efficiency: float | None) -> None:
    for entry in table:
        long = entry["dropped"].get("too_long", {"rows": 0, "tokens": 0})
        print(
            f"{entry['name']}: weight {entry['weight']:g}, {entry['rows_used']:,} of {entry['rows_available']:,} rows, "
            f"{entry['tokens']:,} tokens ({entry['tokens'] / max(tokens, 1):.1%}); too long: {long['rows']:,} rows, {long['tokens']:,} tokens"
        )
    packed = f", packing efficiency {efficiency:.4f}" if efficiency is not None else ""
    print(f"{rows:,} rows, {tokens:,} tokens, {trained:,} trained{packed}")
