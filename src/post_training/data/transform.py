"""One dataset -> `rows.jsonl` of validated examples and `rejects.jsonl` of the rest, with reasons.

A source row, or a tree of rows, gives one example or several (pairs of n answers). Always rows_in = rows_out + the sum over
`dropped`, in source rows, where rows_out counts those that are in an example;
`examples` counts the lines of `rows.jsonl`. `dropped` holds rejected rows and `skipped` ones, which the transform left out
by choice; an example that is refused while its rows are in others is in `dropped_examples`. A line carries `row`, the
number of its source row (from 0, over all files), and `part` where there are several of that number.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from post_training.core import json_lines
from post_training.core.errors import DataError
from post_training.core.fingerprint import replacing, write_atomically
from post_training.core.locate import Slice
from post_training.core.progress import Progress
from post_training.core.task import Task
from post_training.data.apply_transform import Application, BlockResult
from post_training.data.pool import Pool, allowed
from post_training.data.reading.readers import BLOCK_BYTES, read_blocks, unreadable
from post_training.data.reading.records import Block
from post_training.data.registry import PACKAGE, TransformSource
from post_training.data.row_groups import apply_to_groups

SOURCE = "source"
# Below this a second process costs more time than it saves.
_WORTH_A_PROCESS_BYTES = 4 * BLOCK_BYTES


def run(task: Task) -> None:
    """Body of the rule `transform`."""
    raw = task.input_manifest("raw")
    files = [task.inputs["raw"].parent / entry["path"] for entry in raw["files"]]
    task.directory.mkdir(parents=True, exist_ok=True)
    rows_path, rejects_path = task.directory / "rows.jsonl", task.directory / "rejects.jsonl"
    total = BlockResult()
    progress = Progress("transform", "rows")
    with replacing(rows_path) as rows_file:
        rows = _Hashed(rows_file)
        # Complete before the verdict, because a user reads it after a failure.
        with rejects_path.open("wb") as rejects_file:
            rejects = _Hashed(rejects_file)
            for result in _results(task, files):
                rows.write(result.lines)
                rejects.write(result.rejects)
                total.add(result)
                if task.runtime.get("strict") and result.first_rejection:
                    raise DataError(f"{result.first_rejection}; data.strict stops at the first")
                progress.update(total.rows_in)
        print(_summary(total))
        _check(task, total, rejects_path)
    source = _keep_source(task)
    task.finish(
        rows_in=total.rows_in,
        rows_out=total.rows_out,
        examples=total.examples,
        dropped=dict(total.dropped),
        skipped=dict(total.skipped),
        dropped_examples=dict(total.dropped_examples),
        trimmed={"rows": total.trimmed_rows, "turns": total.trimmed_turns},
        files=[rows.entry(rows_path), rejects.entry(rejects_path), *source],
        **({"module": task.runtime["file"]} if source else {}),
    )


class _Hashed:
    """A file that is written once, and its size and hash."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append."""
        self.file.write(data)
        self.sha256.update(data)
        self.size += len(data)

    def entry(self, path: Path) -> dict[str, Any]:
        """The file in the manifest."""
        return {"path": path.name, "bytes": self.size, "sha256": self.sha256.hexdigest()}


def _keep_source(task: Task) -> list[dict[str, str]]:
    """A user's own module as it was used, in `source/`: no commit of this repository has it. Entries for the manifest."""
    module = TransformSource(task.config["transform"], Path(task.runtime["file"]))
    if module.file.resolve().is_relative_to(PACKAGE):
        return []
    for name, path in module.files.items():
        write_atomically(task.directory / SOURCE / name, path.read_text(encoding="utf-8"))
    return [{"path": f"{SOURCE}/{name}"} for name in module.files]


def _results(task: Task, files: list[Path]) -> Iterator[BlockResult]:
    """The result of each block, in order, for any number of processes."""
    arguments = (task.config, Path(task.runtime["file"]))
    application = Application(*arguments)  # here too, so that a mistake in it is one line
    blocks = _selected(files, task.config["slice"])
    if application.transform.keys is not None:
        yield from apply_to_groups(application, blocks, task.directory)
        return
    small = sum(file.stat().st_size for file in files) < _WORTH_A_PROCESS_BYTES
    workers = 1 if small else allowed(task.runtime.get("num_proc"))
    state = Application if workers > 1 else lambda *_: application
    preload = ["post_training.data.apply_transform", "post_training.data.shapes.messages"]
    with Pool(workers, state, arguments, preload, task.inputs["raw"]) as pool:
        yield from pool.in_order(_apply, blocks)


def _selected(files: list[Path], asked: str | None) -> Iterator[tuple[int, Block]]:
    """(number of its file's first row over all files, block) of the selected rows."""
    part = Slice.parse(asked) if asked else Slice()
    total = sum(block.size for block in read_blocks(files)) if part.needs_total else None
    start, stop = part.bounds(total)
    before = base = 0
    file = None
    for block in read_blocks(files):
        if block.file is not file:
            file, base = block.file, before
        block.skip = max(0, start - before)
        block.take = max(0, stop - max(before, start))
        before += block.size
        if block.rows:
            yield base, block
        if before >= stop:
            return


def _apply(application: Application, base: int, block: Block) -> BlockResult:
    try:
        return application.block(block, base)
    except (OSError, EOFError) as error:
        raise unreadable(block.file, block.first, error) from None


def _check(task: Task, total: BlockResult, rejects: Path) -> None:
    tolerated = task.runtime.get("max_reject_fraction", 0.0)
    rows_in, rejected = total.rows_in, total.dropped - total.skipped
    if rows_in == 0:
        raise DataError(f"{task.inputs['raw']}: the source has no rows; check its path and split")
    found = f"{rejects}: {rejected.total():,} of {rows_in:,} rows rejected ({rejected.total() / rows_in:.1%})"
    if total.rows_out == 0:
        raise DataError(
            f"{found}{_reasons(total.dropped)}; nothing is left. {_first(rejects)}{_remedy(task, rejected)}"
        )
    if rejected.total() / rows_in > tolerated:
        raise DataError(
            f"{found}{_reasons(rejected)}; more than data.max_reject_fraction={tolerated:g}. {_first(rejects)}"
            f"{_remedy(task, rejected)}, fix the source, or raise the limit"
        )


def _first(rejects: Path) -> str:
    """The first rejected row and what it has: it mostly says what all of them lack."""
    entry = next(json_lines.read(rejects), None)
    return f"The first, row {entry['row']}: {entry['reason']}: {entry['detail']}; " if entry else ""


def _remedy(task: Task, rejected: Counter[str]) -> str:
    name = task.config["transform"]
    name = name["name"] if isinstance(name, dict) else name
    if next(iter(rejected.most_common(1)), ("",))[0] == "missing_column":
        return f"name the columns as the transform's arguments (transform: {{name: {name}, ...}}) or choose another transform"
    return "choose a transform that fits the source"


def _summary(total: BlockResult) -> str:
    said = [f"{total.rows_in:,} rows in, {total.rows_out:,} out{_reasons(total.dropped)}"]
    if total.examples != total.rows_out:
        said.append(f"{total.examples:,} examples")
    if total.dropped_examples:
        said.append(f"examples dropped{_reasons(total.dropped_examples)}")
    if total.trimmed_rows:
        said.append(f"{total.trimmed_turns:,} turns after the assistant's last trimmed from {total.trimmed_rows:,}")
    return "; ".join(said)


def _reasons(dropped: Counter[str]) -> str:
    return "".join(
        f"{': ' if index == 0 else ', '}{reason} {count:,}"
        for index, (reason, count) in enumerate(dropped.most_common())
    )
