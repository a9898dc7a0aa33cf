"""Files -> rows, one at a time, with the reader that the suffix names.

Nothing is guessed and nothing is dropped: a record that cannot be read comes out as a `Problem`, and
a file that cannot be read at all is a DataError with the place. JSON Lines are split at b"\\n" only,
because U+2028 and its kind are ordinary characters inside a string.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from post_training.errors import DataError
from post_training.locate import data_suffix

_BOM = b"\xef\xbb\xbf"
_BATCH_ROWS = 1024
_CHUNK_BYTES = 1 << 17
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException, UnicodeDecodeError)


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


def read_rows(files: list[Path]) -> Iterator[Record]:
    """Every record of the files, in order."""
    for file in files:
        reader = _READERS[data_suffix(file) or ""]
        number = 0
        try:
            for number, row in enumerate(reader(file), start=1):
                if not isinstance(row, dict | Problem):
                    row = Problem("not_an_object", f"found {type(row).__name__}", repr(row)[:200])
                yield Record(file, number, row)
        except DataError:
            raise
        except _UNREADABLE as error:
            problem = " ".join(str(error).split())
            raise DataError(
                f"{file}: after {number:,} rows: cannot be read ({problem}); check that the file is whole, or fetch it again"
            ) from None


def _json_lines(file: Path) -> Iterator[Any]:
    with _opened(file) as handle:
        for number, line in enumerate(handle, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            line = line.strip(b" \t\r\n")
            if line:
                yield _parse(line)


def _json_file(file: Path) -> Iterator[Any]:
    """An array of objects, or one object, or (as such files often are) JSON Lines under another name."""
    with _opened(file) as handle:
        data = handle.read().removeprefix(_BOM)
    try:
        rows = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        lines = [line for line in data.split(b"\n") if line.strip()]
        parsed = [_parse(line) for line in lines]
        if len(lines) > 1 and not isinstance(parsed[0], Problem):
            yield from parsed
            return
        try:
            # Python's reader takes NaN, which strict JSON does not have; the rows with it are the problem, not the file.
            rows = json.loads(data)
        except (ValueError, RecursionError):
            raise DataError(
                f"{file}: {_place(data, error)}: not JSON ({error.msg}); mend the file or split it into JSON Lines"
            ) from None
        rows = [_parse(json.dumps(row).encode()) for row in (rows if isinstance(rows, list) else [rows])]
    yield from rows if isinstance(rows, list) else [rows]


def _place(data: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as undecodable:
        return f"byte {undecodable.start:,}"
    return f"line {error.lineno}, column {error.colno}"


def _parse(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        reason = "not_a_number" if b"NaN" in line or b"Infinity" in line else "undecodable_line"
        return Problem(reason, f"{error.msg} at column {error.colno}", line[:200].decode(errors="replace"))


def _separated(delimiter: str) -> Callable[[Path], Iterator[Any]]:
    def read(file: Path) -> Iterator[Any]:
        csv.field_size_limit(1 << 30)
        # Bytes that are not UTF-8 become lone surrogates, so that they cost their own row and not the file.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            reader = csv.DictReader(handle, delimiter=delimiter, strict=True)
            try:
                names = list(reader.fieldnames or [])
                if not any(names):
                    raise DataError(f"{file}: has no header line; its first line must name the columns")
                if len(set(names)) < len(names):
                    raise DataError(f"{file}: line 1: two columns have one name ({', '.join(names)}); rename one")
                for row in reader:
                    yield _cells(row, len(names))
            except csv.Error as error:
                raise DataError(
                    f"{file}: line {reader.line_num}: not {file.suffix[1:].upper()} ({error}); check the quotes around it"
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


def _parquet(file: Path) -> Iterator[Any]:
    for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS):
        yield from batch.to_pylist()


def _arrow(file: Path) -> Iterator[Any]:
    """Arrow's file format or its stream format, which `datasets` writes."""
    with pa.memory_map(str(file)) as source:
        try:
            batches = pa.ipc.open_file(source)
            for index in range(batches.num_record_batches):
                yield from batches.get_batch(index).to_pylist()
        except pa.ArrowInvalid:
            source.seek(0)
            for batch in pa.ipc.open_stream(source):
                yield from batch.to_pylist()
            # Whole batches of a writer that was killed look like a shorter stream; only its end mark tells.
            source.seek(max(0, source.size() - len(_END_OF_STREAM)))
            if source.read() != _END_OF_STREAM:
                raise EOFError("the Arrow stream has no end mark: its writer did not finish") from None


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


def _opened(file: Path) -> IO[bytes] | gzip.GzipFile:
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rb")
    if file.name.lower().endswith(".zst"):
        return io.BufferedReader(_Zstandard(file), _CHUNK_BYTES)
    return file.open("rb")


_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".jsonl.zst": _json_lines,
    ".json": _json_file,
    ".json.gz": _json_file,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
}
