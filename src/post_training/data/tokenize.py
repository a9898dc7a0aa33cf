"""One dataset's rows -> `tokens-*.arrow`: token ids, and for conversations which of them are trained on.

Rows go through in blocks of fixed size, one Arrow record batch a block, and a fixed number of blocks
makes a shard: the files are the same, byte for byte, for any number of worker processes.
"""

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from post_training import model
from post_training.data import shapes
from post_training.data.blocks import Block, Tokenization, block_schema, check_template
from post_training.data.chat_template import resolve_template
from post_training.errors import DataError
from post_training.fingerprint import file_sha256
from post_training.progress import Progress
from post_training.task import Task

BLOCK_ROWS = 1000
SHARD_BLOCKS = 64


@dataclass
class Totals:
    """What has been written so far."""

    shape: str
    rows_out: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)

    @property
    def rows_in(self) -> int:
        """Rows that came in: each was written or dropped."""
        return self.rows_out + self.dropped.total()

    def add(self, block: Block) -> None:
        """Count a block."""
        batch, dropped, tokens, trained = block
        self.rows_out += batch.num_rows
        self.tokens += tokens
        self.trained_tokens += trained
        self.dropped += dropped
        self.lengths += shapes.load(self.shape).lengths(batch).tolist()


def run(task: Task) -> None:
    """Body of the rule `tokenize`."""
    rows = task.input_manifest("rows")
    source = task.inputs["rows"].parent / "rows.jsonl"
    folder = model.folder(task.inputs["model"])
    shape, template = task.config["rows"], resolve_template(task.config["chat_template"], folder)
    check_template(folder, template)
    task.directory.mkdir(parents=True, exist_ok=True)
    total, totals = rows["examples"], Totals(shape)
    progress = Progress("tokenize", "rows", total)
    files = []
    blocks = _blocks(source, folder, template, shape, task.runtime.get("num_proc"), total)
    for number in count():
        first = next(blocks, None)
        if first is None:
            break
        path = task.directory / f"tokens-{number:05d}.arrow"
        files.append(_write_shard(path, chain([first], islice(blocks, SHARD_BLOCKS - 1)), totals, progress))
    if totals.rows_in != total:
        raise DataError(
            f"{source}: holds {totals.rows_in:,} rows, its manifest says {total:,}; delete {task.inputs['rows']} to make it again"
        )
    if totals.rows_out == 0:
        raise DataError(
            f"{source}: none of {total:,} rows can be trained on ({dict(totals.dropped)}); check data.chat_template"
        )
    longest = {f"p{q}": int(np.percentile(totals.lengths, q)) for q in (50, 90, 99)} | {"max": max(totals.lengths)}
    print(
        f"{totals.rows_out:,} rows, {totals.tokens:,} tokens, {totals.trained_tokens:,} trained; lengths {longest}; "
        f"dropped {dict(totals.dropped) or 'none'}"
    )
    task.finish(
        rows_in=total,
        rows_out=totals.rows_out,
        dropped=dict(totals.dropped),
        tokens=totals.tokens,
        trained_tokens=totals.trained_tokens,
        lengths=longest,
        files=files,
    )


def _write_shard(path: Path, blocks: Iterator[Block], totals: Totals, progress: Progress) -> dict[str, str | int]:
    """Write one Arrow file and describe it; it has its name only once it is whole."""
    unfinished = path.with_suffix(".arrow.tmp")
    before = totals.rows_out
    schema = block_schema(shapes.load(totals.shape))
    with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for block in blocks:
            writer.write_batch(block[0])
            totals.add(block)
            progress.update(totals.rows_in)
    unfinished.replace(path)
    rows = totals.rows_out - before
    return {"path": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path), "rows": rows}


def _blocks(path: Path, folder: Path, template: str, shape: str, num_proc: int | None, total: int) -> Iterator[Block]:
    cores = len(os.sched_getaffinity(0))
    allowed = min(num_proc or cores, cores)
    workers = min(allowed, -(-total // BLOCK_ROWS))
    # A lone worker may use the tokenizer library's threads; those of several would fight for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers <= 1 < allowed else "false"
    with path.open("rb") as lines:
        blocks = iter(lambda: tuple(islice(lines, BLOCK_ROWS)), ())
        if workers <= 1:
            yield from map(Tokenization(folder, template, shape).block, blocks)
            return
        context = multiprocessing.get_context("forkserver")
        pool = ProcessPoolExecutor(workers, context, _start_worker, (folder, template, shape))
        try:
            yield from _in_order(pool, blocks, ahead=2 * workers)
        except BrokenProcessPool:
            raise DataError(
                f"{path}: a worker process died, most likely for want of memory; lower data.num_proc (now {workers})"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, blocks: Iterator[tuple[bytes, ...]], ahead: int) -> Iterator[Block]:
    """The blocks' results in the blocks' order, with at most `ahead` of them in memory."""
    waiting: deque[Future[Block]] = deque()
    for block in blocks:
        waiting.append(pool.submit(_worker_block, block))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_worker: Tokenization


def _start_worker(folder: Path, template: str, shape: str) -> None:
    global _worker
    _worker = Tokenization(folder, template, shape)


def _worker_block(lines: tuple[bytes, ...]) -> Block:
    return _worker.block(lines)
