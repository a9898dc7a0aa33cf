"""One dataset's rows -> `tokens-*.arrow`: token ids, and for conversations which of them are trained on.

`rejects.jsonl` lists the rows that cannot be tokenised, where there are any: `row` (and `part`) of the source, `reason`, `detail`.
"""

import importlib.metadata
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from post_training import models
from post_training.core import json_lines
from post_training.core.errors import DataError
from post_training.core.fingerprint import digest, file_sha256, replacing
from post_training.core.manifest import Manifest
from post_training.core.progress import Progress
from post_training.core.task import Task
from post_training.data.pool import Pool, allowed
from post_training.data.tokens.blocks import Settings, Tokenization, check_template
from post_training.data.tokens.chat_template import resolve_template
from post_training.data.tokens.engine import PRELOAD, EngineFails, Ids, Offsets, fastokens_name, flat, hard_cases
from post_training.data.tokens.shards import Job, Shard, Worker, byte_ranges
from post_training.data.tokens.tokenizer_file import TokenizerFile

# Found by the rendered text, and a matter of preflight's.
_UNTRAINED = ("no_trained_token", "identical_pair")
# Below this, or this share of the tokenizer's own file, a tokenizer is not worth loading twice: the fast engine
# needs a second and more for a large vocabulary.
FAST_ABOVE_BYTES, FAST_ABOVE_SHARE = 512 << 10, 0.4


def run(task: Task) -> None:
    """Body of the rule `tokenize`."""
    rows = task.input_manifest("rows")
    source = task.inputs["rows"].parent / "rows.jsonl"
    folder = models.folder(task.inputs["model"])
    settings = Settings(
        resolve_template(task.config["chat_template"], folder),
        task.config["rows"],
        task.config["special_tokens_in_content"],
        task.config.get("train_on", "assistant"),
    )
    file = TokenizerFile.read(folder)
    reference = Tokenization(folder, settings, file)
    check_template(reference)
    task.directory.mkdir(parents=True, exist_ok=True)
    for left in task.directory.glob(".tokens-*.tmp"):  # of a job that was killed
        left.unlink()
    total = rows["examples"]
    identity = digest([task.spec["fingerprint"], settings.__dict__, file_sha256(file.path), _content_of(rows)])
    job = Job(source, task.directory, folder, settings, file, _may_be_fast(file, source), identity)
    shards, engine = _make(job, reference, task.runtime.get("num_proc"), total)
    dropped = sum((shard.dropped for shard in shards), Counter[str]())
    rows_in, lengths = sum(shard.rows_in for shard in shards), np.concatenate([shard.lengths for shard in shards])
    if rows_in != total:
        raise DataError(
            f"{source}: holds {rows_in:,} rows, its manifest says {total:,}; delete {task.inputs['rows']} to make it again"
        )
    if not len(lengths):
        raise DataError(
            f"{source}: none of {total:,} rows can be trained on ({dict(dropped)}); check data.chat_template"
        )
    rejects = _rejects(task, shards, total, dropped)
    longest = {f"p{q}": int(np.percentile(lengths, q)) for q in (50, 90, 99)} | {"max": int(lengths.max())}
    tokens, trained = sum(shard.tokens for shard in shards), sum(shard.trained_tokens for shard in shards)
    print(
        f"{len(lengths):,} rows, {tokens:,} tokens, {trained:,} trained; lengths {longest}; "
        f"dropped {dict(dropped) or 'none'}; {engine}"
    )
    task.finish(
        rows_in=total,
        rows_out=len(lengths),
        dropped=dict(dropped),
        tokens=tokens,
        trained_tokens=trained,
        lengths=longest,
        engine=engine,
        files=[*(shard.entry() for shard in shards), *({"path": path.name} for path in rejects)],
    )


def _rejects(task: Task, shards: list[Shard], total: int, dropped: Counter[str]) -> list[Path]:
    """The list of dropped rows, in one file. Raises DataError where more than `data.max_reject_fraction` cannot be tokenised."""
    parts = [task.directory / f"rejects-{number:05d}.jsonl" for number in range(len(shards))]
    found, path = [part for part in parts if part.is_file()], task.directory / "rejects.jsonl"
    if found:
        with replacing(path) as file:
            file.writelines(part.read_bytes() for part in found)
    rejected = Counter({reason: count for reason, count in dropped.items() if reason not in _UNTRAINED})
    tolerated = task.runtime.get("max_reject_fraction", 1.0)
    if rejected.total() > tolerated * total:
        first = next(entry for entry in json_lines.read(path) if entry["reason"] in rejected)
        raise DataError(
            f"{path}: {rejected.total():,} of {total:,} rows cannot be tokenised ({dict(rejected)}); the first: row {first['row']:,}: "
            f"{first['reason']}: {first['detail']}; more than data.max_reject_fraction={tolerated:g}: fix them, or raise it"
        )
    return [path] if found else []


def _content_of(rows: Manifest) -> str:
    return next(str(entry["sha256"]) for entry in rows["files"] if entry["path"] == "rows.jsonl")


def _may_be_fast(file: TokenizerFile, source: Path) -> bool:
    """Masks without offsets need a byte-level tokenizer, and little text is encoded before a second one is loaded."""
    least = max(FAST_ABOVE_BYTES, FAST_ABOVE_SHARE * file.path.stat().st_size)
    if file.byte_lengths is None or source.stat().st_size < least:
        return False
    try:
        return bool(fastokens_name())
    except importlib.metadata.PackageNotFoundError:
        return False


def _make(job: Job, reference: Tokenization, num_proc: int | None, total: int) -> tuple[list[Shard], str]:
    """All shards, and the engine that encoded them."""
    progress = Progress("tokenize", "rows", total)
    shards: list[Shard] = []
    try:
        for shard in _shards(job, reference, num_proc):
            shards.append(shard)
            progress.update(sum(shard.rows_in for shard in shards))
    except EngineFails as error:
        print(f"tokenize: {fastokens_name()} is not used here: {error}; using the tokenizers library", flush=True)
        for path in job.directory.glob("tokens-*.arrow"):  # also those of a killed job that did not get so far
            path.unlink()
        job.fast = False
        shards = list(_shards(job, reference, num_proc))
    return shards, fastokens_name() if job.fast else reference.encoder.engine.name


def _shards(job: Job, reference: Tokenization, num_proc: int | None) -> Iterator[Shard]:
    """Shards in order; those of the fast engine are compared with the `tokenizers` library first."""
    ranges = byte_ranges(job.source)
    most = allowed(num_proc)
    processes = min(most, len(ranges))
    # A lone worker may use the tokenizer library's threads; those of several would fight for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if processes <= 1 < most else "false"
    # The fork server loads the fast tokenizer once, and its pages are shared by all workers.
    os.environ[PRELOAD] = str(job.file.path) if job.fast else ""
    arguments = (job, None if job.fast or processes > 1 else reference)
    with Pool(processes, Worker, arguments, ["post_training.data.tokens.preload"], job.source) as pool:
        if job.fast:
            texts = hard_cases(list(job.file.control))
            try:
                _compare(reference, texts, *pool.call(Worker.encode, texts))
            except BrokenProcessPool:
                raise EngineFails("it ends its process") from None
        for shard in pool.in_order(Worker.shard, ((number, *span) for number, span in enumerate(ranges))):
            if job.fast and shard.samples:
                texts = [text for text, _ in shard.samples]
                _compare(reference, texts, *flat([ids for _, ids in shard.samples]))
            shard.samples.clear()
            yield shard


def _compare(reference: Tokenization, texts: list[str], ids: Ids, offsets: Offsets) -> None:
    """Raise EngineFails where the ids are not those of the `tokenizers` library."""
    expected, starts = reference.encoder.engine.encode(texts)
    if np.array_equal(expected, ids) and np.array_equal(starts, offsets):
        return
    for index, text in enumerate(texts):
        ours, theirs = ids[offsets[index] : offsets[index + 1]], expected[starts[index] : starts[index + 1]]
        if not np.array_equal(ours, theirs):
            raise EngineFails(f"it gives other ids than tokenizers for {text[:80]!r}")
