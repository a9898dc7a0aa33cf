"""`rows.jsonl` -> `tokens-*.arrow`, each written by one worker process on its own.

A shard is a byte range of the file that depends on the file's size alone, so the shards are the same, byte for byte, for
any number of workers. It gets its name when it is complete, and its schema says what it was made from, so a job resumes
from the shards of one that was killed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from post_training.core.fingerprint import digest, replacing
from post_training.data import shapes
from post_training.data.tokens.blocks import Settings, Tokenization, record_batch
from post_training.data.tokens.encode import Ids
from post_training.data.tokens.engine import Fastokens
from post_training.data.tokens.tokenizer_file import TokenizerFile

# Shards enough for many workers, small enough to be held in memory, and not too many files.
SHARDS, LEAST_BYTES, MOST_BYTES = 64, 256 << 10, 4 << 20
# Rows encoded at a time: many enough for the engine, few enough for the caches.
_BLOCK_ROWS = 500
_METADATA = b"post_training"


@dataclass
class Job:
    """Inputs and settings of all shards of a dataset; sent to the workers."""

    source: Path
    directory: Path
    folder: Path
    """Model folder, for its tokenizer."""
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
    size: int
    sha256: str
    rows_in: int
    dropped: Counter[str]
    tokens: int
    trained_tokens: int
    lengths: npt.NDArray[np.int64]
    samples: list[tuple[str, Ids]]
    """Texts with their ids; none where an earlier job wrote the file."""

    def entry(self) -> dict[str, Any]:
        """The shard in the manifest."""
        return {"path": self.path.name, "bytes": self.size, "sha256": self.sha256, "rows": len(self.lengths)}


class Worker:
    """State of a worker process; the tokenizer is loaded when the first text is encoded."""

    def __init__(self, job: Job, tokenization: Tokenization | None = None) -> None:
        self.job, self._given = job, tokenization

    @cached_property
    def tokenization(self) -> Tokenization:
        """Of this process."""
        job = self.job
        engine = Fastokens(job.file) if job.fast else None
        return self._given or Tokenization(job.folder, job.settings, job.file, engine)

    def encode(self, texts: list[str]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids and offsets of some texts from the process's engine."""
        return self.tokenization.encoder.engine.encode(texts)

    def shard(self, number: int, start: int, end: int) -> Shard:
        """One shard of the source's bytes."""
        return make_shard(lambda: self.tokenization, self.job, number, start, end)


def byte_ranges(path: Path) -> list[tuple[int, int]]:
    """[start, end) of each shard, at line ends."""
    size = path.stat().st_size
    step = min(max(size // SHARDS, LEAST_BYTES), MOST_BYTES)
    starts = [0]
    with path.open("rb") as file:
        for position in range(step, size, step):
            if position > starts[-1]:
                file.seek(position - 1)
                file.readline()
                if starts[-1] < file.tell() < size:
                    starts.append(file.tell())
    return list(zip(starts, [*starts[1:], size], strict=True))


def make_shard(tokenization: Callable[[], Tokenization], job: Job, number: int, start: int, end: int) -> Shard:
    """Write one Arrow file, or read the complete one of a job that was killed."""
    path = job.directory / f"tokens-{number:05d}.arrow"
    key = digest([job.identity, start, end])
    try:
        content = path.read_bytes()
        reader = pa.ipc.open_file(content)
        metadata = json.loads(reader.schema.metadata[_METADATA])
        if metadata["key"] == key:
            return _shard(path, content, metadata, reader.get_batch(0), shapes.load(job.settings.shape), [])
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        pass  # missing, cut off, or of something else
    worker = tokenization()
    with job.source.open("rb") as file:
        file.seek(start)
        lines = file.read(end - start).splitlines()
    blocks = [worker.block(lines[first : first + _BLOCK_ROWS]) for first in range(0, len(lines), _BLOCK_ROWS)]
    dropped = sum((block.dropped for block in blocks), Counter[str]())
    rejects = [entry for block in blocks for entry in block.rejects]
    if rejects:  # there before the shard, and so always for a complete one
        with replacing(job.directory / f"rejects-{number:05d}.jsonl") as file:
            file.writelines(orjson.dumps(entry) + b"\n" for entry in rejects)
    metadata = {"key": key, "rows_in": len(lines), "dropped": dict(sorted(dropped.items()))}
    batch = record_batch(blocks, worker.shape, {_METADATA: json.dumps(metadata)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue()
    with replacing(path) as file:
        file.write(content)
    return _shard(
        path, content, metadata, batch, worker.shape, [sample for block in blocks for sample in block.samples]
    )


def _shard(
    path: Path, content: Any, metadata: dict[str, Any], batch: pa.RecordBatch, shape: Any, samples: Any
) -> Shard:
    tokens, trained = (int(counts.sum()) for counts in shape.token_counts(batch))
    sha256, dropped = hashlib.sha256(content).hexdigest(), Counter[str](metadata["dropped"])
    rows_in, size = metadata["rows_in"], len(memoryview(content))
    return Shard(path, size, sha256, rows_in, dropped, tokens, trained, shape.lengths(batch), samples)
