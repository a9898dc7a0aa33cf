"""`rows.jsonl` -> `tokens-*.arrow`, each made by one worker process on its own.

A shard is a range of the file's bytes that depends on the file's size alone, so the shards are the same, byte
for byte, for any number of workers. It has its name only once it is whole, and says in its schema what it was
made from: a job that was killed goes on with those that are there.
"""

import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from post_training.core.errors import DataError
from post_training.core.fingerprint import digest
from post_training.data import shapes
from post_training.data.tokens.blocks import Block, Settings, Tokenization, record_batch
from post_training.data.tokens.encode import Ids
from post_training.data.tokens.engine import PRELOAD, EngineFails, Fastokens, Offsets
from post_training.data.tokens.tokenizer_file import TokenizerFile

# Shards enough for many workers, small enough to be held in memory, and not too many files.
SHARDS, LEAST_BYTES, MOST_BYTES = 64, 256 << 10, 4 << 20
# What is encoded at a time: large enough for the engine, small enough for the caches.
_BLOCK_ROWS = 500
_FACTS = b"post_training"


@dataclass
class Job:
    """What every shard of a dataset is made from; goes to the workers."""

    source: Path
    directory: Path
    folder: Path
    """The model's, for its tokenizer."""
    settings: Settings
    file: TokenizerFile
    fast: bool
    """Whether `fastokens` encodes."""
    identity: str
    """Digest of all that decides the ids: the same for equal rows, tokenizer and settings."""


@dataclass
class Shard:
    """One finished file."""

    path: Path
    sha256: str
    rows_in: int
    dropped: Counter[str]
    tokens: int
    trained_tokens: int
    lengths: npt.NDArray[np.int64]
    samples: list[tuple[str, Ids]]
    """Texts with their ids; none where the file was there already."""


def byte_ranges(path: Path) -> list[tuple[int, int]]:
    """[start, end) of each shard, at line ends."""
    size = path.stat().st_size
    step = min(max(size // SHARDS, LEAST_BYTES), MOST_BYTES)
    starts = [0]
    with path.open("rb") as file:
        for place in range(step, size, step):
            if place > starts[-1]:
                file.seek(place - 1)
                file.readline()
                if starts[-1] < file.tell() < size:
                    starts.append(file.tell())
    return list(zip(starts, [*starts[1:], size], strict=True))


def make_shard(tokenization: Callable[[], Tokenization], job: Job, number: int, start: int, end: int) -> Shard:
    """Write one Arrow file, or read what a killed job left whole."""
    path = job.directory / f"tokens-{number:05d}.arrow"
    key = digest([job.identity, start, end])
    found = _read(path, key, job)
    if found is not None:
        return found
    worker = tokenization()
    blocks: list[Block] = []
    with job.source.open("rb") as file:
        file.seek(start)
        lines = file.read(end - start).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for first in range(0, len(lines), _BLOCK_ROWS):
        blocks.append(worker.block(lines[first : first + _BLOCK_ROWS]))
    dropped = sum((block.dropped for block in blocks), Counter[str]())
    facts = {"key": key, "rows_in": len(lines), "dropped": dict(sorted(dropped.items()))}
    batch = record_batch(blocks, worker.shape, {_FACTS: json.dumps(facts)})
    tokens, trained = worker.shape.token_counts(batch)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue()
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("wb") as output:
        output.write(content)
    unfinished.replace(path)
    samples = [sample for block in blocks for sample in block.samples]
    sha256 = hashlib.sha256(content).hexdigest()
    lengths = worker.shape.lengths(batch)
    return Shard(path, sha256, len(lines), dropped, int(tokens.sum()), int(trained.sum()), lengths, samples)


def _read(path: Path, key: str, job: Job) -> Shard | None:
    """A shard that is whole and made from the same."""
    try:
        content = path.read_bytes()
        reader = pa.ipc.open_file(content)
        facts = json.loads(reader.schema.metadata[_FACTS])
        batch = reader.get_batch(0)
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None
    if facts.get("key") != key:
        return None
    shape = shapes.load(job.settings.shape)
    tokens, trained = shape.token_counts(batch)
    sha256, dropped = hashlib.sha256(content).hexdigest(), Counter[str](facts["dropped"])
    lengths = shape.lengths(batch)
    return Shard(path, sha256, facts["rows_in"], dropped, int(tokens.sum()), int(trained.sum()), lengths, [])


class Workers:
    """Processes that make shards; none but this one where that is enough."""

    def __init__(self, job: Job, processes: int, own: Tokenization) -> None:
        """`own` is this process's, with the engine that every tokenizer has."""
        self.job, self.processes = job, processes
        self._pool: ProcessPoolExecutor | None = None
        if processes > 1:
            # The fork server loads the fast tokenizer once, and its pages are shared by all workers.
            os.environ[PRELOAD] = str(job.file.path) if job.fast else ""
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["post_training.data.tokens.preload"])
            self._pool = ProcessPoolExecutor(processes, context, _start, (job,))
        else:
            _start(job, None if job.fast else own)

    def encode(self, texts: list[str]) -> tuple[Ids, Offsets]:
        """What the fast engine makes of some texts."""
        if self._pool is None:
            return _encode(texts)
        try:
            return self._pool.submit(_encode, texts).result()
        except BrokenProcessPool:
            raise EngineFails("it ends its process") from None

    def shards(self, ranges: list[tuple[int, int]]) -> Iterator[Shard]:
        """All shards in order, with a bounded number of results that wait."""
        tasks = ((number, start, end) for number, (start, end) in enumerate(ranges))
        if self._pool is None:
            yield from (_make(*task) for task in tasks)
            return
        try:
            waiting = [self._pool.submit(_make, *task) for task in islice(tasks, 4 * self.processes)]
            while waiting:
                done = waiting.pop(0).result()
                waiting += [self._pool.submit(_make, *task) for task in islice(tasks, 1)]
                yield done
        except BrokenProcessPool:
            raise DataError(
                f"{self.job.source}: a worker process died, most likely for want of memory; lower data.num_proc "
                f"(now {self.processes})"
            ) from None

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_job: Job
_tokenization: Tokenization | None = None


def _start(job: Job, tokenization: Tokenization | None = None) -> None:
    global _job, _tokenization
    _job, _tokenization = job, tokenization


def _worker() -> Tokenization:
    """Loaded when the first shard is to be made, which a finished job never asks for."""
    global _tokenization
    if _tokenization is None:
        engine = Fastokens(_job.file) if _job.fast else None
        _tokenization = Tokenization(_job.folder, _job.settings, _job.file, engine)
    return _tokenization


def _encode(texts: list[str]) -> tuple[Ids, Offsets]:
    return _worker().encoder.engine.encode(texts)


def _make(number: int, start: int, end: int) -> Shard:
    return make_shard(_worker, _job, number, start, end)


def describe(shard: Shard) -> dict[str, Any]:
    """A shard in the manifest."""
    return {
        "path": shard.path.name,
        "bytes": shard.path.stat().st_size,
        "sha256": shard.sha256,
        "rows": len(shard.lengths),
    }
