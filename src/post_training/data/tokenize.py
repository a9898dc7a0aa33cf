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
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from post_training import model
from post_training.data.chat_template import ChatTemplate, special_tokens
from post_training.data.encode import Encoder
from post_training.errors import DataError
from post_training.fingerprint import file_sha256
from post_training.progress import Progress
from post_training.task import Task

BLOCK_ROWS = 1000
SHARD_BLOCKS = 64
IGNORED = -100
"""The label of a token that is not trained on, as torch's cross entropy has it."""
_IDS = pa.list_(pa.int32())
SCHEMAS = {
    "messages": pa.schema([("input_ids", _IDS), ("labels", _IDS), ("row", pa.int64())]),
    "preference": pa.schema([("prompt_ids", _IDS), ("chosen_ids", _IDS), ("rejected_ids", _IDS), ("row", pa.int64())]),
}
Block = tuple[pa.RecordBatch, Counter[str], int, int]
"""Rows, dropped by reason, tokens, trained tokens."""


class Tokenization:
    """Tokenises blocks of rows of one shape."""

    def __init__(self, folder: Path, template: str, shape: str) -> None:
        self.template = ChatTemplate(template, special_tokens(folder))
        self.encoder = Encoder(folder)
        self.shape = shape

    def block(self, lines: tuple[bytes, ...]) -> Block:
        """One block of `rows.jsonl`."""
        rows = [orjson.loads(line) for line in lines]
        dropped: Counter[str] = Counter()
        made = (self._messages if self.shape == "messages" else self._preference)(rows, dropped)
        columns = {name: [row[name] for row in made] for name in SCHEMAS[self.shape].names}
        arrays = [
            _list_array(columns[f.name]) if f.type == _IDS else pa.array(columns[f.name], f.type)
            for f in SCHEMAS[self.shape]
        ]
        tokens = sum(
            len(values) for name, values in ((n, v) for n in columns if n not in ("row", "labels") for v in columns[n])
        )
        if self.shape == "messages":
            trained = sum(int((labels != IGNORED).sum()) for labels in columns["labels"])
        else:
            trained = sum(len(ids) for name in ("chosen_ids", "rejected_ids") for ids in columns[name])
        return pa.record_batch(arrays, schema=SCHEMAS[self.shape]), dropped, tokens, trained

    def _messages(self, rows: list[dict[str, Any]], dropped: Counter[str]) -> list[dict[str, Any]]:
        texts, spans, kept = [], [], []
        for row in rows:
            try:
                text, trained = self.template.render(row["messages"], row.get("tools"))
            except ValueError as error:
                dropped[str(error).partition(":")[0]] += 1
                continue
            texts.append(text)
            spans.append(trained)
            kept.append(row["row"])
        made = []
        for number, (ids, mask) in zip(kept, self.encoder.encode(texts, spans), strict=True):
            if mask.any():
                made.append({"input_ids": ids, "labels": np.where(mask, ids, np.int32(IGNORED)), "row": number})
            else:
                dropped["no_trained_token"] += 1
        return made

    def _preference(self, rows: list[dict[str, Any]], dropped: Counter[str]) -> list[dict[str, Any]]:
        texts, kept = [], []
        for row in rows:
            prompt, tools = row["prompt"], row.get("tools")
            try:
                asked, _ = self.template.render(prompt, tools, add_generation_prompt=True)
                chosen, _ = self.template.render([*prompt, *row["chosen"]], tools)
                rejected, _ = self.template.render([*prompt, *row["rejected"]], tools)
            except ValueError as error:
                dropped[str(error).partition(":")[0]] += 1
                continue
            texts += [asked, chosen, rejected]
            kept.append(row["row"])
        encoded = [ids for ids, _ in self.encoder.encode(texts, [[]] * len(texts))]
        made = []
        triples = zip(kept, encoded[0::3], encoded[1::3], encoded[2::3], strict=True)
        for number, prompt_ids, chosen_ids, rejected_ids in triples:
            # An answer starts where the renderings diverge, which is before the prompt's end where tokens merge across it.
            shared = min(_common(prompt_ids, chosen_ids), _common(prompt_ids, rejected_ids))
            answers = {"chosen_ids": chosen_ids[shared:], "rejected_ids": rejected_ids[shared:]}
            if not len(answers["chosen_ids"]) or not len(answers["rejected_ids"]):
                dropped["no_trained_token"] += 1
            elif np.array_equal(answers["chosen_ids"], answers["rejected_ids"]):
                dropped["identical_pair"] += 1
            else:
                made.append({"prompt_ids": prompt_ids[:shared], **answers, "row": number})
        return made


@dataclass
class Totals:
    """What has been written so far."""

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
        self.lengths += document_lengths(batch).tolist()


def run(task: Task) -> None:
    """Body of the rule `tokenize`."""
    rows = task.input_manifest("rows")
    source = task.inputs["rows"].parent / "rows.jsonl"
    folder = model.folder(task.inputs["model"])
    shape, template = task.config["rows"], task.config["chat_template"]
    check_stop_token(folder, template)
    task.directory.mkdir(parents=True, exist_ok=True)
    total, totals = rows["rows_out"], Totals()
    progress = Progress("tokenize", "rows", total)
    files = []
    blocks = _blocks(source, folder, template, shape, task.runtime.get("num_proc"), total)
    for number in count():
        first = next(blocks, None)
        if first is None:
            break
        path = task.directory / f"tokens-{number:05d}.arrow"
        files.append(_write_shard(path, chain([first], islice(blocks, SHARD_BLOCKS - 1)), shape, totals, progress))
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


def _write_shard(
    path: Path, blocks: Iterator[Block], shape: str, totals: Totals, progress: Progress
) -> dict[str, str | int]:
    """Write one Arrow file and describe it; it has its name only once it is whole."""
    unfinished = path.with_suffix(".arrow.tmp")
    before = totals.rows_out
    with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, SCHEMAS[shape]) as writer:
        for block in blocks:
            writer.write_batch(block[0])
            totals.add(block)
            progress.update(totals.rows_in)
    unfinished.replace(path)
    rows = totals.rows_out - before
    return {"path": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path), "rows": rows}


def document_lengths(batch: pa.RecordBatch) -> np.ndarray:
    """Tokens of each row, int64: of a conversation, or of a pair's prompt with its longer answer."""

    def lengths(name: str) -> np.ndarray:
        return np.diff(batch.column(name).offsets.to_numpy()).astype(np.int64)

    if "input_ids" in batch.schema.names:
        return lengths("input_ids")
    return lengths("prompt_ids") + np.maximum(lengths("chosen_ids"), lengths("rejected_ids"))


def check_stop_token(folder: Path, template: str) -> int:
    """The token that ends an answer; refuse a template that does not train it, or a tokenizer that cuts it up.

    A model trained without it never stops.
    """
    tokenization = Tokenization(folder, template, "messages")
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text, spans = tokenization.template.render(conversation)
    except ValueError as error:
        raise DataError(f"data.chat_template: cannot render a question and its answer ({error}); mend it") from None
    ((ids, mask),) = tokenization.encoder.encode([text], [spans])
    if not mask.any():
        raise DataError("data.chat_template: trains on nothing of an answer; put {% generation %} around it")
    last = int(ids[mask][-1])
    config = orjson.loads((folder / "tokenizer.json").read_bytes())
    special = {token["id"]: token["content"] for token in config.get("added_tokens", []) if token.get("special")}
    if last not in special:
        raise DataError(
            "data.chat_template: the last trained token of an answer is not a special token of the tokenizer, so the model "
            f"would not learn to stop; end the generation block with one of {', '.join(list(special.values())[:8]) or 'its special tokens (it has none)'}"
        )
    return last


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


def _list_array(values: list[np.ndarray]) -> pa.ListArray:
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = np.concatenate(values) if values else np.zeros(0, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(np.int32)))


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the common prefix."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size
