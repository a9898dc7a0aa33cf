"""Data of a training: its datasets, the lengths of their examples, and some examples as the trainer sees them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from post_training import models
from post_training.core import manifest
from post_training.data import shapes
from post_training.data.view import open_rows
from post_training.inspection.tokens import tokens_of

EDGES = np.unique(np.round(np.geomspace(1, 1 << 24, 385)).astype(np.int64))
"""Bounds of the histogram's bins, in tokens: sixteen to each doubling."""
_SHOWN_EXAMPLES = 2
_PREVIEW_ROWS = 64
_SHOWN_TOKENS = 600


def mix_of(training: manifest.Manifest) -> Path:
    """The manifest of a training's mix."""
    return Path(training["inputs"]["data"]["path"])


def datasets(mixed: Path) -> list[dict[str, Any]]:
    """The mix's table; each dataset with `rows_in` of its source, counts of `dropped` by reason, `unused_columns` and `lengths`."""
    mix = manifest.read(mixed)
    found = []
    for entry in mix["table"]:
        tokenized = Path(mix["inputs"][entry["name"]]["path"])
        stages = [manifest.read(tokenized)]
        while "rows" in stages[0]["inputs"]:  # back over the filter, if there is one, to the transform
            stages.insert(0, manifest.read(Path(stages[0]["inputs"]["rows"]["path"])))
        dropped: Counter[str] = Counter()
        for counts in (*(stage["dropped"] for stage in stages), entry.get("dropped", {})):
            for reason, count in counts.items():
                dropped[reason] += count["rows"] if isinstance(count, dict) else count
        lengths = histogram(tokenized, mix["config"]["rows"])
        unused = stages[0].get("columns", {}).get("unused", [])
        facts = {
            "rows_in": stages[0]["rows_in"],
            "dropped": dict(dropped),
            "unused_columns": unused,
            "lengths": lengths,
        }
        found.append({**entry, **facts})
    return found


def histogram(tokenized: Path, shape: str) -> dict[str, list[int]]:
    """Examples of a tokenised dataset by length: `edges`, bounds in tokens, and one `counts` fewer. Reads no tokens."""
    counts = np.zeros(len(EDGES) - 1, dtype=np.int64)
    for entry in manifest.read(tokenized)["files"]:
        if not entry["path"].endswith(".arrow"):
            continue
        reader = pa.ipc.open_file(pa.memory_map(str(tokenized.parent / entry["path"])))
        for number in range(reader.num_record_batches):
            counts += np.histogram(shapes.load(shape).lengths(reader.get_batch(number)), EDGES)[0]
    used = np.flatnonzero(counts)
    if not len(used):
        return {"edges": [], "counts": []}
    first, end = used[0], used[-1] + 1
    return {"edges": EDGES[first : end + 1].tolist(), "counts": counts[first:end].tolist()}


def packing(mixed: Path) -> dict[str, Any]:
    """How full the rows are: `max_seq_length`, `rows`, `tokens`, `longest_row`, and of a packed mix `efficiency`."""
    mix = manifest.read(mixed)
    return {
        "max_seq_length": mix["config"]["max_seq_length"],
        "rows": mix["rows_out"],
        "tokens": mix["tokens"],
        "longest_row": mix.get("longest_row"),
        "efficiency": mix.get("packing_efficiency"),
        "held_out": (mix.get("held_out") or {}).get("rows", 0),
    }


def shown_examples(mixed: Path) -> dict[str, list[dict[str, Any]]]:
    """Dataset -> some of its examples among the first rows of the first epoch.

    Each has `source`, `<dataset> row <n>`, and `sequences`; tokens after the first 600 are left out and counted as `more`.
    """
    mix = manifest.read(mixed)
    # All datasets of a mix have one tokenizer: planning gives each the pipeline's.
    tokenized = manifest.read(Path(next(iter(mix["inputs"].values()))["path"]))
    folder = models.folder(Path(tokenized["inputs"]["model"]["path"]))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found: dict[str, list[dict[str, Any]]] = {entry["name"]: [] for entry in mix["table"] if entry["rows_used"]}
    rows = open_rows(mixed)
    for index in range(min(len(rows), _PREVIEW_ROWS)):
        sequences, sources = shapes.load(mix["config"]["rows"]).sequences(rows[index]), rows.sources(index)
        each = len(sequences) // len(sources)  # sequences of an example
        for number, source in enumerate(sources):
            shown = found.get(source.rpartition(" row ")[0])
            if shown is not None and len(shown) < _SHOWN_EXAMPLES:
                own = sequences[number * each : (number + 1) * each]
                shown.append({"source": source, "sequences": [_shown(tokenizer, *sequence) for sequence in own]})
        if all(len(shown) >= _SHOWN_EXAMPLES for shown in found.values()):
            break
    return {name: shown for name, shown in found.items() if shown}


def _shown(tokenizer: Tokenizer, name: str, ids: Any, trained: Any) -> dict[str, Any]:
    tokens = tokens_of(tokenizer, ids[:_SHOWN_TOKENS], trained[:_SHOWN_TOKENS])
    counts = {"total": len(ids), "trained": int(np.sum(trained)), "more": max(0, len(ids) - _SHOWN_TOKENS)}
    return {"name": name, "tokens": tokens, **counts}
