"""Files -> blocks of records, with the reader that the suffix names; a block -> rows, in whichever process.

Nothing is guessed and nothing is dropped: a record that cannot be read comes out as a `Problem`, and a file that cannot
be read at all is a DataError with the place. Where a block begins depends on the file alone, so that any number of
processes makes the same of it. JSON Lines are split at b"\\n" only: U+2028 and its kind are ordinary characters.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from post_training.data.json_values import split_values
from post_training.errors import DataError
from post_training.locate import data_suffix

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 8192
_LONGEST_LINE_BYTES = 256 << 20
_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 17
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException, UnicodeDecodeError)
# How files begin: the suffix that fits, and what to do about a file that has another.
_BEGINNINGS = {
    b"\x1f\x8b": (".gz", "gzip data; give it the suffix .gz"),
    b"\x28\xb5\x2f\xfd": (".zst", "Zstandard data; give it the suffix .zst"),
    b"PAR1": (".parquet", "a Parquet file; give it the suffix .parquet"),
    b"ARROW1": (".arrow", "an Arrow file; give it the suffix .arrow"),
    b"PK\x03\x04": ("", "a zip archive; unpack it"),
    b"BZh": ("", "bzip2 data; unpack it"),
    b"\xfd7zXZ": ("", "xz data; unpack it"),
    b"\xff\xfe": ("", "UTF-16 text; convert it to UTF-8, such as with iconv"),
    b"\xfe\xff": ("", "UTF-16 text; convert it to UTF-8, such as with iconv"),
    b"version https://git-lfs": ("", "a pointer of Git LFS and not the data; fetch it with `git lfs pull`"),
    b"<!DOCTYPE": ("", "a web page; fetch the file itself"),
    b"<html": ("", "a web page; fetch the file itself"),
}


@dataclass(frozen=True)
class Problem:
    """A record that is not a row."""

    reason: str
    detail: str
    excerpt: str


@dataclass(frozen=True)
class Record:
    """A row, or what is wrong with it, and where it stands (`number` counts from 1 in its file)."""

    file: Path
    number: int
    row: dict[str, Any] | Problem


@dataclass
class Span:
    """Bytes of a file that a reader has looked at and that a worker reads again: cheaper than sending them."""

    start: int
    size: int


@dataclass
class Block:
    """Some records of one file that follow each other."""

    file: Path
    first: int
    """Number of its first record in the file, from 0."""
    size: int
    """Records."""
    data: bytes | Span | list[Any] | pa.RecordBatch
    """Whole lines of JSON, or where they stand; values of JSON, or rows; a batch of columns."""
    skip: int = 0
    """Records at its beginning that are not asked for."""
    take: int = field(default=1 << 62)
    """Records after those that are."""

    @property
    def rows(self) -> int:
        """Records that are asked for."""
        return max(0, min(self.size - self.skip, self.take))

    def __getstate__(self) -> dict[str, Any]:
        """A slice of a batch drags its whole batch along unless it is written out."""
        state = self.__dict__.copy()
        if isinstance(self.data, pa.RecordBatch):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, self.data.schema) as writer:
                writer.write_batch(self.data)
            state["data"] = sink.getvalue()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.data, pa.Buffer):
            (self.data,) = pa.ipc.open_stream(self.data)

    def records(self) -> Iterator[Any]:
        """What was asked for: bytes of JSON to be parsed, a row, or a `Problem`."""
        data = self.data
        if isinstance(data, Span):
            with self.file.open("rb") as handle:
                handle.seek(data.start)
                data = handle.read(data.size)
        if isinstance(data, bytes):
            data = [line for raw in data.split(b"\n") if (line := raw.strip(b" \t\r"))]
        elif isinstance(data, pa.RecordBatch):
            return iter(_rows_of_batch(data.slice(self.skip, self.rows)))
        return islice(data, self.skip, self.skip + self.rows)


def parse(line: bytes) -> Any:
    """A value of JSON, or a `Problem`."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        reason = "not_a_number" if b"NaN" in line or b"Infinity" in line else "undecodable_line"
        return Problem(reason, f"{error.msg} at column {error.colno}", line[:200].decode(errors="replace"))
    # Of two equal keys in an object the parser keeps the last; what it left out shows in the quotation marks.
    if line.count(b'"') > orjson.dumps(value).count(b'"') and (key := _repeated_key(line)) is not None:
        return Problem("duplicate_key", f"{key!r} stands twice in one object", line[:200].decode(errors="replace"))
    return value


def _repeated_key(line: bytes) -> str | None:
    repeated: list[str] = []

    def keys(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        repeated.extend(name for name in names if names.count(name) > 1)

    try:
        json.loads(line, object_pairs_hook=keys)
    except RecursionError:
        return "a key, deeper than can be looked,"
    return repeated[0] if repeated else None


def read_rows(files: list[Path]) -> Iterator[Record]:
    """Every record of the files, in order."""
    for block in read_blocks(files):
        for number, row in enumerate(block.records(), start=block.first + 1):
            row = parse(row) if isinstance(row, bytes) else row
            if not isinstance(row, dict | Problem):
                row = Problem("not_an_object", f"found {type(row).__name__}", repr(row)[:200])
            yield Record(block.file, number, row)


def read_blocks(files: Iterable[Path]) -> Iterator[Block]:
    """The records of the files in blocks, in order."""
    for file in files:
        first = 0
        try:
            _check_beginning(file)
            for size, data in _READERS[data_suffix(file) or ""](file):
                yield Block(file, first, size, data)
                first += size
        except DataError:
            raise
        except _UNREADABLE as error:
            raise unreadable(file, first, error) from None


def unreadable(file: Path, rows: int, error: Exception) -> DataError:
    """What is said of a file that its reader gave up."""
    problem = " ".join(str(error).split())
    return DataError(
        f"{file}: after {rows:,} rows: cannot be read ({problem}); check that the file is whole, or fetch it again"
    )


def _json_lines(file: Path) -> Iterator[tuple[int, bytes | Span]]:
    with _opened(file) as handle:
        yield from _line_blocks(handle, b"", file)


def _json_file(file: Path) -> Iterator[tuple[int, Any]]:
    """An array of objects, or one object, or (as such files often are) JSON Lines under another name."""
    with _opened(file) as handle:
        begun = handle.read(BLOCK_BYTES)
        if not begun.strip():
            raise DataError(f"{file}: line 1, column 1: is empty, expected JSON; check where it comes from")
        line, newline, _ = begun.lstrip().partition(b"\n")
        if newline and line[:1] != b"[" and not isinstance(parse(line), Problem):
            yield from _line_blocks(handle, begun, file)
            return
        values: list[bytes] = []
        held = 0
        for value in split_values(handle, begun, file):
            values.append(value)
            held += len(value)
            if held > BLOCK_BYTES or len(values) == BLOCK_ROWS:
                yield len(values), values
                values, held = [], 0
        if values:
            yield len(values), values


def _line_blocks(handle: Any, begun: bytes, file: Path) -> Iterator[tuple[int, bytes | Span]]:
    """Blocks of whole lines; of a file that is not compressed only where they stand."""
    compressed = file.name.lower().endswith((".gz", ".zst"))
    start = 0 if compressed else handle.tell() - len(begun)
    pending, lines = begun, 0
    while True:
        chunk = handle.read(BLOCK_BYTES)
        pending += chunk
        size = pending.rfind(b"\n") + 1 if chunk else len(pending)
        if size:
            whole = pending[:size]
            if rows := _count_lines(whole):
                yield rows, (whole if compressed else Span(start, size))
                lines += rows
            start, pending = start + size, pending[size:]
        if not chunk:
            return
        if len(pending) > _LONGEST_LINE_BYTES:
            raise DataError(
                f"{file}: after {lines:,} rows: a line longer than {_LONGEST_LINE_BYTES >> 20} MiB; JSON Lines hold one row a line: "
                "check the file's format, or leave the row out"
            )


def _count_lines(data: bytes) -> int:
    """Lines that are not blank."""
    raw = np.frombuffer(data, dtype=np.uint8)
    starts = np.flatnonzero(raw == 10) + 1
    lines = len(starts) + (not data.endswith(b"\n"))
    if data[0] <= 32 or (raw[starts[starts < len(raw)]] <= 32).any():
        return sum(1 for line in data.split(b"\n") if line.strip(b" \t\r"))
    return lines


def _separated(delimiter: str) -> Callable[[Path], Iterator[tuple[int, list[Any]]]]:
    def read(file: Path) -> Iterator[tuple[int, list[Any]]]:
        csv.field_size_limit(1 << 30)
        # Bytes that are not UTF-8 become lone surrogates, so that they cost their own row and not the file.
        with io.TextIOWrapper(_opened(file), encoding="utf-8", errors="surrogateescape", newline="") as handle:
            reader = csv.DictReader(handle, delimiter=delimiter, strict=True)
            try:
                names = list(reader.fieldnames or [])
                if not any(names):
                    raise DataError(f"{file}: has no header line; its first line must name the columns")
                if len(set(names)) < len(names):
                    raise DataError(f"{file}: line 1: two columns have one name ({', '.join(names)}); rename one")
                rows = (_cells(row, len(names)) for row in reader)
                while block := list(islice(rows, 512)):
                    yield len(block), block
            except csv.Error as error:
                kind = (data_suffix(file) or "")[1:4].upper()
                raise DataError(
                    f"{file}: line {reader.reader.line_num:,}: not {kind} ({error}); check the quotes around it"
                ) from None

    return read


def _cells(row: dict[Any, Any], columns: int) -> dict[str, Any] | Problem:
    surplus = row.pop(None, [])
    cells = [value for value in row.values() if value is not None] + surplus
    if len(cells) != columns:
        return Problem("wrong_number_of_cells", f"{len(cells)} cells, expected {columns}", str(cells)[:200])
    if any(not cell.isascii() and any("\ud800" <= c <= "\udfff" for c in cell) for cell in cells):
        return Problem("undecodable_line", "not UTF-8", str(cells)[:200])
    return row


def _parquet(file: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    with pq.ParquetFile(file) as opened:
        _check_names(opened.schema_arrow, file)
        held = sum(opened.metadata.row_group(index).total_byte_size for index in range(opened.num_row_groups))
        rows = max(1, opened.metadata.num_rows)
        batch_rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES * rows // max(1, held)))
        for batch in opened.iter_batches(batch_size=batch_rows):
            yield batch.num_rows, batch


def _arrow(file: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Arrow's file format or its stream format, which `datasets` writes."""
    with pa.memory_map(str(file)) as source:
        try:
            batches = pa.ipc.open_file(source)
            _check_names(batches.schema, file)
            for index in range(batches.num_record_batches):
                yield from _slices(batches.get_batch(index))
        except pa.ArrowInvalid:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            _check_names(stream.schema, file)
            for batch in stream:
                yield from _slices(batch)
            # Whole batches of a writer that was killed look like a shorter stream; only its end mark tells.
            source.seek(max(0, source.size() - len(_END_OF_STREAM)))
            if source.read() != _END_OF_STREAM:
                raise EOFError("the Arrow stream has no end mark: its writer did not finish") from None


def _check_names(schema: pa.Schema, file: Path) -> None:
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{file}: two columns have one name ({', '.join(schema.names)}); rename one")


def _slices(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """A batch in pieces of the size of a block, once it is known to hold together: damaged offsets end the process."""
    batch.validate(full=True)
    rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES * batch.num_rows // max(1, batch.nbytes)))
    for start in range(0, batch.num_rows, rows):
        piece = batch.slice(start, rows)
        yield piece.num_rows, piece


def _rows_of_batch(batch: pa.RecordBatch) -> list[Any]:
    """Rows of a batch of columns; a row with text that is not UTF-8, or a date beyond the calendar, is a `Problem`."""
    try:
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if batch.num_rows > 1:
            return [row for index in range(batch.num_rows) for row in _rows_of_batch(batch.slice(index, 1))]
        return [Problem("undecodable_line", " ".join(str(error).split()), "")]
    if any(_has_null_fields(column) for column in batch.columns):
        return [{name: _without_nulls(value) for name, value in row.items()} for row in rows]
    return rows


def _has_null_fields(array: pa.Array) -> bool:
    """Whether a struct somewhere in it has a field that is null."""
    if pa.types.is_struct(array.type):
        fields = array.flatten()
        return any(field.null_count or _has_null_fields(field) for field in fields)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _has_null_fields(array.flatten())
    return False


def _without_nulls(value: Any) -> Any:
    """Columns give every object the keys of all objects; a field that is null was not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    return [_without_nulls(child) for child in value] if isinstance(value, list) else value


class _Zstandard(io.RawIOBase):
    """The bytes of a .zst file, of all its frames; the library's own reader takes a cut-off file for a whole one."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            compressed = self._frame.unused_data or self._file.read(_CHUNK_BYTES)
            if self._frame.eof and compressed:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            elif not compressed:
                if not self._frame.eof:
                    raise EOFError("the file ends within a Zstandard frame")
                return 0
            self._pending = memoryview(self._frame.decompress(compressed))
        size = min(len(buffer), len(self._pending))
        buffer[:size], self._pending = self._pending[:size], self._pending[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _opened(file: Path) -> Any:
    """The file's bytes behind its compression and its byte order mark."""
    name = file.name.lower()
    if name.endswith(".gz"):
        handle: Any = gzip.open(file, "rb")  # noqa: SIM115  (the caller closes it)
    elif name.endswith(".zst"):
        handle = io.BufferedReader(_Zstandard(file), _CHUNK_BYTES)
    else:
        handle = file.open("rb")
    if handle.peek(len(_BOM))[: len(_BOM)] == _BOM:
        handle.read(len(_BOM))
    return handle


def _check_beginning(file: Path) -> None:
    """Refuse a file that is something else than its suffix says, where that can be told."""
    with file.open("rb") as handle:
        begun = handle.read(32)
    for beginning, (suffix, said) in _BEGINNINGS.items():
        if begun.startswith(beginning) and not (suffix and file.name.lower().endswith(suffix)):
            raise DataError(f"{file}: is {said}")
    if file.name.lower().endswith(".gz") and begun and not begun.startswith(b"\x1f\x8b"):
        raise DataError(f"{file}: is not gzip data; take the suffix .gz away, or fetch it again")


_TEXT_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_file,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
}
_READERS = {
    **{suffix + packed: reader for suffix, reader in _TEXT_READERS.items() for packed in ("", ".gz", ".zst")},
    ".parquet": _parquet,
    ".arrow": _arrow,
}
