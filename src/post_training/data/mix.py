"""Tokenised datasets -> the rows that a stage trains on: an index over their token shards."""

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from post_training.core.errors import DataError
from post_training.core.fingerprint import file_sha256
from post_training.core.progress import Progress
from post_training.core.task import Task
from post_training.data.mixing.contradictory_pairs import contradictory
from post_training.data.mixing.epochs import KEY_TYPE, Keys, longest_row, row_keys, save, write_epoch
from post_training.data.mixing.select import Documents, Mask, amount, contents, copies, fit, held_out
from post_training.data.mixing.shards import Indices, Tokenized, leave_out_unused
from post_training.data.view import epoch_path, part_file

EVAL = "eval:"
"""Before a dataset's name: the input that holds its `eval_split`."""


class Counts(TypedDict):
    """Rows of a dataset, and their tokens."""

    rows: int
    tokens: int
    tokens_lost: NotRequired[int]
    """Of rows that were cut."""


class TableEntry(TypedDict):
    """One dataset in the manifest's `table`, beside its `weight` or `rows` in the configuration."""

    name: str
    rows_in: int
    rows_available: int
    """Not held out, and not dropped."""
    rows_used: int
    """With repetitions."""
    rows_left_out: int
    """By weight, rows or tokens."""
    documents: int
    tokens: int
    trained_tokens: int
    share: NotRequired[float]
    """Of the tokens of the mix."""
    dropped: dict[str, Counts]
    """By reason."""
    held_out: Counts
    cut: Counts


@dataclass
class Part:
    """Documents of one dataset for training or for evaluation."""

    dataset: Tokenized
    documents: Documents
    copies: Indices
    """Of each document."""

    def count(self, column: str) -> int:
        """Sum over the documents with their copies."""
        return int(getattr(self.documents, column) @ self.copies)


def run(task: Task) -> None:
    """Body of the rule `mix`."""
    config = task.config
    opened: dict[str, Tokenized] = {}
    for name, path in task.inputs.items():
        shards = sum(len(dataset.files) for dataset in opened.values())
        opened[name] = Tokenized.open(name, path, config["rows"], shards)
    leave_out_unused(opened.values(), config["rows"])
    train, evaluation, table, duplicates = choose(config, opened)
    task.directory.mkdir(parents=True, exist_ok=True)

    files = _write_documents(task.output, "train", train, config["seed"])
    rows = write_epoch(task.output, 0, config)
    epochs = _epochs(task.runtime, rows)
    progress = Progress("mix: order", "epochs", epochs)
    for number in range(1, epochs):
        write_epoch(task.output, number, config)
        progress.update(number + 1)
    files += [epoch_path(task.output, number) for number in range(epochs)]
    held = {"rows": 0}
    if evaluation:
        files += _write_documents(task.output, "eval", evaluation, config["seed"])
        held = {"rows": write_epoch(task.output, 0, config, "eval"), **_sums(evaluation), "duplicates": duplicates}
        files.append(epoch_path(task.output, 0, "eval"))

    sums = _sums(train)
    longest = max(int(part.documents.lengths.max()) for part in train if len(part.copies))
    for entry in table:
        entry["share"] = round(entry["tokens"] / sums["tokens"], 5)
    efficiency = round(sums["tokens"] / (rows * config["max_seq_length"]), 5) if config["packing"] else None
    _print_table(table, rows, sums, efficiency, held)
    dropped: Counter[str] = Counter()
    for entry in table:
        dropped.update({reason: count["rows"] for reason, count in entry["dropped"].items()})
    task.finish(
        rows_in=sum(entry["rows_in"] for entry in table),
        rows_out=rows,
        **sums,
        dropped=dict(dropped),
        packing_efficiency=efficiency,
        longest_document=longest,
        longest_row=longest_row(task.output, rows) if config["packing"] else longest,
        contradictory=contradictory([part.dataset for part in train]),
        held_out=held,
        table=table,
        shards=[
            {**file, "path": os.path.relpath(file["path"], task.directory.absolute())}
            for dataset in opened.values()
            for file in dataset.files
        ],
        files=[{"path": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files],
    )


def choose(
    config: dict[str, Any], opened: dict[str, Tokenized]
) -> tuple[list[Part], list[Part], list[TableEntry], int]:
    """Training parts, held-out parts, the table, and how many rows are left out because they equal a held-out one.

    A row is held out by its dataset's `eval_split`, or by `eval_fraction` where there is none; rows of equal content are
    then not trained on in any dataset. Raises DataError when nothing is held out or nothing is left.
    """
    capacity, fraction, seed = config["max_seq_length"], config["eval_fraction"], config["seed"]
    fitted = {name: fit(dataset, capacity, config["overlong"]) for name, dataset in opened.items()}
    held: dict[str, Mask] = {name: np.zeros(len(dataset.numbers), dtype=bool) for name, dataset in opened.items()}
    out, evaluation = held, []
    if fraction or any(name.startswith(EVAL) for name in opened):
        progress = Progress("mix: compare with held-out rows", "rows", sum(len(one.numbers) for one in opened.values()))
        hashes = {}
        for name, dataset in opened.items():
            hashes[name] = contents(dataset)
            progress.update(sum(map(len, hashes.values())))
        for name, own in hashes.items():
            if name.startswith(EVAL):
                held[name][:] = True
            elif f"{EVAL}{name}" not in opened:
                held[name] = held_out(own, fraction, seed)
        of_held = np.concatenate([own[held[name]] for name, own in hashes.items()])
        out = {name: np.isin(own, of_held) for name, own in hashes.items()}
        parts = [(opened[name], fitted[name].of_rows(mask)) for name, mask in held.items()]
        evaluation = [Part(dataset, some, np.ones_like(some.row)) for dataset, some in parts if len(some.row)]
        if not evaluation:
            if not any(len(one.row) for name, one in fitted.items() if not name.startswith(EVAL)):
                raise DataError(_none_fits(opened, capacity))
            raise DataError(
                f"data.eval_fraction={fraction} holds out none of {len(np.concatenate(list(hashes.values()))):,} rows; raise it"
            )
    train: list[Part] = []
    table: list[TableEntry] = []
    progress = Progress("mix: choose", "rows", sum(len(opened[entry["name"]].numbers) for entry in config["datasets"]))
    for entry in config["datasets"]:
        name = entry["name"]
        part, row = _used(entry, opened[name], fitted[name], out[name], config)
        train.append(part)
        table.append(row)
        progress.update(sum(done["rows_in"] for done in table))
    if not sum(entry["rows_used"] for entry in table):
        raise DataError(
            "the mix has no row to train on: all are longer than "
            f"max_seq_length={capacity}, held out, or left out by their weight, rows or tokens; raise one of them"
        )
    duplicates = sum(int((out[name] & ~held[name]).sum()) for name in opened)
    return train, evaluation, table, duplicates


def _none_fits(opened: dict[str, Tokenized], capacity: int) -> str:
    shortest = min(int(dataset.lengths.min()) for dataset in opened.values() if len(dataset.lengths))
    return (
        f"no row can be trained on: all are longer than max_seq_length={capacity} (the shortest has {shortest:,} tokens) or "
        "have no token of an answer within it; raise max_seq_length"
    )


def _used(
    entry: dict[str, Any], dataset: Tokenized, fitted: Documents, out: Mask, config: dict[str, Any]
) -> tuple[Part, TableEntry]:
    """One dataset's documents to train on, and how many rows are held out, dropped, left out or used."""
    fits = np.zeros(len(out), dtype=bool)
    fits[fitted.row] = True
    rows = np.flatnonzero(fits & ~out)
    tokens = np.bincount(fitted.row, weights=fitted.tokens, minlength=len(out))[rows].astype(np.int64)
    keys = row_keys(config["seed"], f"choose {dataset.name}", dataset.numbers[rows])
    used = np.zeros(len(out), dtype=np.int64)
    used[rows] = copies(amount(entry), keys, tokens)
    documents = fitted.of_rows(used > 0)
    part = Part(dataset, documents, used[documents.row])

    def counted(which: Mask) -> Counts:
        return {"rows": int(which.sum()), "tokens": int(dataset.tokens[which].sum())}

    gone, cut = ~fits & ~out, fits & ~out & (dataset.lengths > config["max_seq_length"])
    reasons = {"no_trained_token": gone}
    if config["overlong"] == "drop":
        alone = gone & _prompt_fills(dataset, config["max_seq_length"])
        reasons = {"too_long": gone & ~alone, "prompt_too_long": alone}
    kind, wanted = amount(entry)
    tokens_lost = int(dataset.tokens[cut].sum() - fitted.of_rows(cut).tokens.sum())
    counts: Any = {
        "name": entry["name"],
        kind: wanted,
        "rows_in": len(out),
        "rows_available": len(rows),
        "rows_used": int(used.sum()),
        "rows_left_out": int((used[rows] == 0).sum()),
        **_sums([part]),
        "dropped": {reason: counted(which) for reason, which in reasons.items() if which.any()},
        "held_out": counted(out),
        "cut": {**counted(cut), "tokens_lost": tokens_lost},
    }
    return part, counts


def _prompt_fills(dataset: Tokenized, capacity: int) -> Mask:
    """Rows whose prompt leaves no room for a token of an answer; none for conversations."""
    if "prompt_ids" not in (dataset.documents.dtype.names or ()):
        return np.zeros(len(dataset.numbers), dtype=bool)
    return np.asarray(dataset.documents["prompt_ids_length"] >= capacity)


def _sums(parts: list[Part]) -> dict[str, int]:
    return {
        "documents": sum(len(part.copies) for part in parts),
        "tokens": sum(part.count("tokens") for part in parts),
        "trained_tokens": sum(part.count("trained") for part in parts),
    }


def _write_documents(path: Path, name: str, parts: list[Part], seed: int) -> list[Path]:
    """`documents.npy`, and `keys.npy` from which the epochs follow."""
    keys = []
    for part in parts:
        own = np.zeros(len(part.copies), dtype=KEY_TYPE)
        own["copies"], own["length"] = part.copies, part.documents.lengths
        own["key"] = _document_keys(part, seed)
        keys.append(own)
    files = [part_file(path, name, "documents.npy"), part_file(path, name, "keys.npy")]
    save(files[0], np.concatenate([part.documents.records for part in parts]))
    save(files[1], np.concatenate(keys))
    return files


def _document_keys(part: Part, seed: int) -> Keys:
    numbers = part.dataset.numbers[part.documents.row]
    window = np.arange(len(numbers)) - np.searchsorted(part.documents.row, part.documents.row)
    return row_keys(seed, f"order {part.dataset.name}", numbers + (window << 50))


def _epochs(runtime: dict[str, Any], rows: int) -> int:
    """Epochs of the planned training; a longer one adds more (epochs.write_epochs)."""
    batch = runtime.get("batch") or 1
    steps = runtime.get("steps") or math.ceil(rows * (runtime.get("epochs") or 1) / batch)
    return max(1, math.ceil(steps * batch / rows))


def _print_table(
    table: list[TableEntry], rows: int, sums: dict[str, int], efficiency: float | None, held: dict[str, int]
) -> None:
    for entry in table:
        kind, wanted = amount(entry)
        held_out, cut = entry["held_out"]["rows"], entry["cut"]
        lost = [f"{reason} {one['rows']:,} rows, {one['tokens']:,} tokens" for reason, one in entry["dropped"].items()]
        lost += [f"held out {held_out:,}"] if held_out else []
        lost += [f"cut {cut['rows']:,}, {cut['tokens_lost']:,} tokens lost"] if cut["rows"] else []
        print(
            f"{entry['name']}: {kind} {wanted:g}, {entry['rows_used']:,} rows of {entry['rows_available']:,}, {entry['tokens']:,} "
            f"tokens ({entry['share']:.1%}); {'; '.join(lost) or 'nothing dropped'}"
        )
    packed = f", packing efficiency {efficiency:.4f}" if efficiency is not None else ""
    kept = f"; held out {held['documents']:,} documents, {held['tokens']:,} tokens" if held["rows"] else ""
    print(f"{rows:,} rows an epoch, {sums['tokens']:,} tokens, {sums['trained_tokens']:,} trained{packed}{kept}")
