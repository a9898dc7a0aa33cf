"""What a training was given: a line a dataset, how long its rows are, and some rows as the trainer sees them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from post_training import models
from post_training.core import manifest
from post_training.data import shapes
from post_training.data.dataset_of_row import origins
from post_training.data.view import Rows, open_rows
from post_training.inspection.collect import tokens_of

EDGES = np.unique(np.round(np.geomspace(1, 1 << 24, 385)).astype(np.int64))
"""Bounds of the histogram's bins, in tokens: sixteen to each doubling."""
_SHOWN_DOCUMENTS = 2
_LOOKED_AT_ROWS = 64
_SHOWN_TOKENS = 600


def mix_of(training: manifest.Manifest) -> Path:
    """The manifest of a training's mix."""
    return Path(training["inputs"]["data"]["path"])


def datasets(mixed: Path) -> list[dict[str, Any]]:
    """The mix's table, each dataset with `rows_in` of its source, all that was `dropped` by reason, and its `lengths`."""
    told = manifest.read(mixed)
    found = []
    for entry in told["table"]:
        tokenized_path = Path(told["inputs"][entry["name"]]["path"])
        tokenized = manifest.read(tokenized_path)
        rows = manifest.read(Path(tokenized["inputs"]["rows"]["path"]))
        stages = [rows, tokenized]
        if rows["stage"] == "filter":
            stages.insert(0, manifest.read(Path(rows["inputs"]["rows"]["path"])))
        dropped: Counter[str] = Counter()
        for counts in (*(stage["dropped"] for stage in stages), entry.get("dropped", {})):
            for reason, count in counts.items():
                dropped[reason] += count["rows"] if isinstance(count, dict) else count
        lengths = histogram(tokenized_path, told["config"]["rows"])
        found.append({**entry, "rows_in": stages[0]["rows_in"], "dropped": dict(dropped), "lengths": lengths})
    return found


def histogram(tokenized: Path, shape: str) -> dict[str, list[int]]:
    """Rows of a tokenised dataset by length: `edges`, bounds in tokens, and one `counts` fewer. Reads no tokens."""
    counts = np.zeros(len(EDGES) - 1, dtype=np.int64)
    for entry in manifest.read(tokenized)["files"]:
        reader = pa.ipc.open_file(pa.memory_map(str(tokenized.parent / entry["path"])))
        for number in range(reader.num_record_batches):
            counts += np.histogram(shapes.load(shape).lengths(reader.get_batch(number)), EDGES)[0]
    used = np.flatnonzero(counts)
    if not len(used):
        return {"edges": [], "counts": []}
    part = slice(used[0], used[-1] + 1)
    return {"edges": EDGES[used[0] : used[-1] + 2].tolist(), "counts": counts[part].tolist()}


def packing(mixed: Path) -> dict[str, Any]:
    """How full the rows are: `max_seq_length`, `rows`, `tokens`, `longest_row`, and of a packed mix `efficiency`."""
    told = manifest.read(mixed)
    return {
        "max_seq_length": told["config"]["max_seq_length"],
        "rows": told["rows_out"],
        "tokens": told["tokens"],
        "longest_row": told.get("longest_row"),
        "efficiency": told.get("packing_efficiency"),
        "held_out": (told.get("held_out") or {}).get("rows", 0),
    }


def shown_rows(mixed: Path) -> dict[str, list[dict[str, Any]]]:
    """Dataset -> some of its documents among the first rows of the first epoch.

    Each has `origin`, `<dataset> row <n>`, and `sequences`, whose tokens beyond the first 600 are left out and counted as `more`.
    """
    told = manifest.read(mixed)
    # All of a mix have one tokenizer: planning gives each the pipeline's.
    tokenized = manifest.read(Path(next(iter(told["inputs"].values()))["path"]))
    folder = models.folder(Path(tokenized["inputs"]["model"]["path"]))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    wanted = [entry["name"] for entry in told["table"] if entry["rows_used"]]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    rows = open_rows(mixed)
    for index in range(min(len(rows), _LOOKED_AT_ROWS)):
        for origin, sequences in _documents(rows, index, told["config"]["rows"]):
            name = origin.rpartition(" row ")[0]
            if name in found and len(found[name]) < _SHOWN_DOCUMENTS:
                found[name].append({"origin": origin, "sequences": [_shown(tokenizer, s) for s in sequences]})
        if all(len(shown) >= _SHOWN_DOCUMENTS for shown in found.values()):
            break
    return {name: shown for name, shown in found.items() if shown}


def _documents(rows: Rows, index: int, shape: str) -> list[tuple[str, list[Any]]]:
    """(origin, sequences) of each document of a row."""
    sequences, names = shapes.load(shape).sequences(rows[index]), origins(rows, index)
    each = len(sequences) // len(names)
    return [(name, sequences[place * each : (place + 1) * each]) for place, name in enumerate(names)]


def _shown(tokenizer: Tokenizer, sequence: tuple[str, Any, Any]) -> dict[str, Any]:
    name, ids, trained = sequence
    tokens = tokens_of(tokenizer, ids[:_SHOWN_TOKENS], trained[:_SHOWN_TOKENS])
    counts = {"total": len(ids), "trained": int(np.sum(trained)), "more": max(0, len(ids) - _SHOWN_TOKENS)}
    return {"name": name, "tokens": tokens, **counts}
