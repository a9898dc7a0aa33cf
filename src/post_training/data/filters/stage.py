"""One transformed dataset -> `rows.jsonl` of the kept rows, `removed.jsonl` of the others with reasons, `keys.npy`.

Length, language and contamination are tested row by row, in this order and in several processes; of the remaining equal or
similar rows the first is kept. Only the first reason is given.

The manifest: `rows_in` = `rows_out` + the sum over `dropped` (reason -> rows), all in lines of `rows.jsonl`;
`examples` = `rows_out`. `removed` has for each reason its first lines of `removed.jsonl`, and `partners` for each
reason the number of rows by the dataset that they repeat or give away (`this dataset` for its own).
`evaluation_texts`: for each evaluation set `compared` and `too_short`, the texts that have no n-gram.

A line of `removed.jsonl` has `row` (and `part`) of the source, `reason`, `detail`, `excerpt`, and of duplicates and
contamination `partner`: `row` (and `part`), and its `dataset` when it is another one. Reasons: too_few_characters,
too_many_characters, too_few_turns, too_many_turns, other_language, contaminated, exact_duplicate, near_duplicate.

`keys.npy`, uint64 [rows_out, keys + 1]: by which later datasets find duplicates of these rows, and where each row
begins in `rows.jsonl`.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from post_training.core.errors import DataError
from post_training.core.fingerprint import replacing
from post_training.core.progress import Progress
from post_training.core.task import Task
from post_training.data.filters import duplicates
from post_training.data.filters.checks import Checked, Checks, Job, Removal
from post_training.data.filters.duplicates import Part
from post_training.data.filters.text import excerpt, place
from post_training.data.pool import Pool, allowed
from post_training.data.tokens.shards import byte_ranges

EARLIER, EVALUATION = "earlier:", "evaluation:"
"""Before a dataset's name: inputs that are filtered before this one, and those that are evaluated on."""
OWN = "this dataset"
_EXAMPLES = 5


def run(task: Task) -> None:
    """Body of the rule `filter`."""
    total = task.input_manifest("rows")["examples"]
    source = task.inputs["rows"].parent / "rows.jsonl"
    task.directory.mkdir(parents=True, exist_ok=True)
    evaluation = {
        name.removeprefix(EVALUATION): path for name, path in task.inputs.items() if name.startswith(EVALUATION)
    }
    job = Job(source, task.config, evaluation, [Path(path) for path in task.runtime["files"]])
    checks = Checks(job)  # here too, so that a mistake in it is one line
    parts: list[Checked] = []
    removed: dict[int, Removal] = {}
    done = 0
    progress = Progress("filter", "rows", total)
    ranges = byte_ranges(source)
    workers = min(allowed(task.runtime.get("num_proc")), len(ranges))
    state = Checks if workers > 1 else lambda _: checks
    with Pool(workers, state, (job,), ["post_training.data.filters.checks"], source) as pool:
        for part in pool.in_order(Checks.range, ranges):
            removed.update({done + index: found for index, found in part.removed.items()})
            part.removed = {}
            done += len(part.offsets)
            parts.append(part)
            progress.update(done)
    if done != total:
        raise DataError(
            f"{source}: holds {done:,} rows, its manifest says {total:,}; delete {task.inputs['rows']} to make it again"
        )
    offsets = np.concatenate([part.offsets for part in parts])
    keys = np.concatenate([part.keys for part in parts])
    parts.clear()
    if task.config["deduplicate"]:
        left = np.flatnonzero(~np.isin(np.arange(total), np.fromiter(removed, dtype=np.int64, count=len(removed))))
        for index, removal in _duplicates(task, source, offsets[left], keys[left]):
            removed[int(left[index])] = removal
    facts = _write(task, source, removed, keys)
    print(f"{total:,} rows in, {facts['rows_out']:,} out; removed {facts['dropped'] or 'none'}")
    if not facts["rows_out"]:
        raise DataError(
            f"{task.directory / 'removed.jsonl'}: all {total:,} rows are removed ({facts['dropped']}); loosen data.filters, "
            "or leave the dataset out"
        )
    texts = checks.evaluation
    if texts is not None:
        names = sorted({*texts.counts, *texts.too_short})
        facts["evaluation_texts"] = {
            name: {"compared": texts.counts[name], "too_short": texts.too_short[name]} for name in names
        }
    task.finish(rows_in=total, examples=facts["rows_out"], **facts)


def _duplicates(task: Task, source: Path, offsets: Any, keys: duplicates.Keys) -> Iterator[tuple[int, Removal]]:
    """Rows that repeat one of an earlier dataset or of this one."""
    with ExitStack() as files:
        earlier = []
        for name in (name for name in task.inputs if name.startswith(EARLIER)):
            folder = task.inputs[name].parent
            stored = np.load(folder / "keys.npy", mmap_mode="r")
            rows = files.enter_context((folder / "rows.jsonl").open("rb"))
            earlier.append(Part(name.removeprefix(EARLIER), rows, stored[:, -1], stored[:, :-1]))
        own = Part(None, files.enter_context(source.open("rb")), offsets, keys)
        for index, reason, detail, dataset, partner in duplicates.find(earlier, own, task.config["near_threshold"]):
            where = {} if dataset is None else {"dataset": dataset}
            yield index, Removal(reason, detail, where | place(partner))


def _write(task: Task, source: Path, removed: dict[int, Removal], keys: duplicates.Keys) -> dict[str, Any]:
    """Write both files of rows, and the keys; returns their facts for the manifest."""
    rows_path, removed_path, keys_path = (task.directory / name for name in ("rows.jsonl", "removed.jsonl", "keys.npy"))
    dropped: Counter[str] = Counter()
    partners: dict[str, Counter[str]] = {}
    examples: dict[str, list[dict[str, Any]]] = {}
    starts, kept, position = [], [], 0
    with source.open("rb") as lines, replacing(rows_path) as rows, removed_path.open("wb") as others:
        for number, line in enumerate(lines):
            removal = removed.get(number)
            if removal is None:
                starts.append(position)
                kept.append(number)
                position += rows.write(line)
                continue
            row = orjson.loads(line)
            entry = {**place(row), "reason": removal.reason, "detail": removal.detail}
            if removal.partner is not None:
                entry["partner"] = removal.partner
                partners.setdefault(removal.reason, Counter())[removal.partner.get("dataset", OWN)] += 1
            entry["excerpt"] = excerpt(row)
            others.write(orjson.dumps(entry) + b"\n")
            dropped[removal.reason] += 1
            if len(shown := examples.setdefault(removal.reason, [])) < _EXAMPLES:
                shown.append(entry)
    np.save(keys_path, np.column_stack([keys[kept], np.array(starts, dtype=np.uint64)]))
    return {
        "rows_out": len(kept),
        "dropped": dict(sorted(dropped.items())),
        "partners": {reason: dict(sorted(counts.items())) for reason, counts in sorted(partners.items())},
        "removed": dict(sorted(examples.items())),
        # With the user's own texts that were looked for, which stay where they are.
        "files": [{"path": path.name} for path in (rows_path, removed_path, keys_path)]
        + [{"path": os.path.abspath(path)} for path in task.runtime.get("files", [])],
    }
