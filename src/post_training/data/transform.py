"""One dataset -> `rows.jsonl` of validated examples and `rejects.jsonl` of the rest, with reasons.

A source row, or a tree of rows, gives one example or several (pairs of n answers). Always rows_in = rows_out + the sum over
`dropped`, in source rows, where rows_out counts those that are in an example;
`examples` counts the lines of `rows.jsonl`. `dropped` holds rejected rows and `skipped` ones, which the transform left out
by choice; an example that is refused while its rows are in others is in `dropped_examples`. A line carries `row`, the
number of its source row, and `part` where there are several of that number. Rows are counted from 1 over all files: the
lines of JSON Lines, blank ones too, and the rows of a table. `first_row` is 1; data of before it have none, and count from 0.

`columns`: `used` and `unused` ones of the source; `partly`, rows that have a column which the configuration names and others lack.
`turn_keys`: keys of turns that only a template may know. `null_rows`: rows without nulls that a union of columns had put in.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from post_training.core.errors import DataError
from post_training.core.fingerprint import replacing
from post_training.core.locate import Slice
from post_training.core.manifest import hashed
from post_training.core.progress import Progress
from post_training.core.task import Task
from post_training.data.apply_transform import Application, BlockResult
from post_training.data.pool import Pool, allowed
from post_training.data.reading.readers import BLOCK_BYTES, read_blocks, unreadable
from post_training.data.reading.records import Block
from post_training.data.reasons import REMEDIES
from post_training.data.registry import TransformSource
from post_training.data.row_groups import apply_to_groups

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
                result.lines = result.rejects = b""
                if task.runtime.get("strict") and result.first_rejection:
                    raise DataError(f"{result.first_rejection}; data.strict stops at the first")
                progress.update(total.rows_in)
        where = f"{_named(files)}: transform {task.config['transform']!r}"
        print(_summary(total))
        total.read.check(task.config["arguments"], where)
        _check(task, total, rejects_path, files)
    written = rows.entry(rows_path)
    if total.nulls.settle(rows_path):
        written = hashed(task.directory, [{"path": rows_path.name}])[0]
    source = TransformSource(task.config["transform"], Path(task.runtime["file"])).keep(task.directory)
    task.finish(
        rows_in=total.rows_in,
        rows_out=total.rows_out,
        examples=total.examples,
        dropped=dict(total.dropped),
        skipped=dict(total.skipped),
        dropped_examples=dict(total.dropped_examples),
        trimmed={"rows": total.trimmed_rows, "turns": total.trimmed_turns},
        first_row=1,
        columns=total.read.summary(),
        turn_keys=dict(total.turn_keys),
        null_rows=total.nulls.rows,
        files=[written, rejects.entry(rejects_path), *source],
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
        yield from pool.in_order(_apply, ((block,) for block in blocks))


def _selected(files: list[Path], asked: str | None) -> Iterator[Block]:
    """The blocks that hold selected rows."""
    part = Slice.parse(asked) if asked else Slice()
    total = sum(block.size for block in read_blocks(files)) if part.needs_total else None
    start, stop = part.bounds(total)
    before = 0
    for block in read_blocks(files):
        block.skip = max(0, start - before)
        block.take = max(0, stop - max(before, start))
        before += block.size
        if block.rows:
            yield block
        if before >= stop:
            return


def _apply(application: Application, block: Block) -> BlockResult:
    try:
        return application.block(block)
    except (OSError, EOFError) as error:
        raise unreadable(block.file, block.first, error) from None


def _named(files: list[Path]) -> str:
    return f"{files[0]}{f' and {len(files) - 1:,} more' if len(files) > 1 else ''}"


def _check(task: Task, total: BlockResult, rejects: Path, files: list[Path]) -> None:
    tolerated = task.runtime.get("max_reject_fraction", 0.0)
    rows_in, rejected = total.rows_in, total.dropped - total.skipped
    if rows_in == 0:
        raise DataError(f"{_named(files)}: has no rows; check its path and split")
    found = f"{rejects}: {rejected.total():,} of {rows_in:,} rows rejected ({rejected.total() / rows_in:.1%})"
    first = f"; the first: {total.first_rejection}" if total.first_rejection else ""
    if total.rows_out == 0:
        remedy = _remedy(task, rejected, first, rows_in)
        raise DataError(f"{found}{_reasons(total.dropped)}; nothing is left{first}; {remedy}")
    if rejected.total() / rows_in > tolerated:
        remedy = _remedy(task, rejected, first, rows_in)
        limit = f"more than data.max_reject_fraction={tolerated:g}"
        raise DataError(f"{found}{_reasons(rejected)}; {limit}{first}; {remedy}, fix the source, or raise the limit")


def _remedy(task: Task, rejected: Counter[str], first: str, rows_in: int) -> str:
    name = task.config["transform"]
    most = next(iter(rejected.most_common(1)), ("",))[0]
    if rows_in == 1 and most == "missing_column" and re.search(r"\.json(\.gz|\.zst)?: row 1: ", first):
        return "the file is one object, which is one row: where its rows are below a key, write their list as the file"
    if most == "undecodable_line" and ".json" in first.partition(": row ")[0]:
        return "check what the file is: JSON Lines hold one object a line, in UTF-8; an array, or objects over several lines, have the suffix .json"
    if most == "missing_column":
        return f"name the columns as the transform's arguments (transform: {{name: {name}, ...}}) or choose another transform"
    if most == "no_shared_prefix":
        return f"name the prompt's column (transform: {{name: {name}, prompt: COLUMN}}), or where each answer is a transcript in one text choose preference_transcripts"
    if most == "unknown_role" and " has no role (" in first:
        return "name the keys of a turn as the transform's arguments, such as {name: messages, role: from, content: value}, or choose another transform"
    if most == "unknown_role":
        return (
            f"map the names of roles (transform: {{name: {name}, roles: {{NAME: user}}}}) or choose another transform"
        )
    if most == "wrong_type" and (column := re.search(r"wrong_type: (\S+) is (?:int|float), expected text", first)):
        return f"a number becomes text in a template, such as '{{{column[1]}}}', or choose a transform that fits the source"
    return REMEDIES.get(most, "look at these rows")


def _summary(total: BlockResult) -> str:
    said = [f"{total.rows_in:,} rows in, {total.rows_out:,} out{_reasons(total.dropped)}"]
    if total.examples != total.rows_out:
        said.append(f"{total.examples:,} examples")
    if total.dropped_examples:
        said.append(f"examples dropped{_reasons(total.dropped_examples)}")
    if total.trimmed_rows:
        said.append(f"{total.trimmed_turns:,} turns after the assistant's last trimmed from {total.trimmed_rows:,}")
    if total.first_rejection:
        said.append(f"the first rejected: {total.first_rejection}")
    columns = total.read.summary()
    said += [f"column {name!r}: in {rows:,} of {total.read.rows:,} rows" for name, rows in columns["partly"].items()]
    if columns["unused"]:
        said.append(f"columns not used: {', '.join(columns['unused'])}")
    if total.turn_keys:
        keys = ", ".join(f"{key} {count:,}" for key, count in total.turn_keys.most_common())
        said.append(f"keys of turns that only a template may use: {keys}")
    if total.nulls.rows:
        said.append(f"nulls of a union of columns dropped from tool calls and tools of {total.nulls.rows:,}")
    return "; ".join(said)


def _reasons(dropped: Counter[str]) -> str:
    return "".join(
        f"{': ' if index == 0 else ', '}{reason} {count:,}"
        for index, (reason, count) in enumerate(dropped.most_common())
    )
