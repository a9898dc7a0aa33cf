"""Files -> blocks of records, with the reader that the suffix names.

A reader gives (number of records, of lines, records) of each block, as `records.Block` holds them; the lines are those of
JSON Lines, blank ones among them, and elsewhere as many as records. Nothing is guessed and nothing is
dropped: a record that cannot be read becomes a `Problem`, and a file that cannot be read is a DataError with the place.
Where a block begins depends on the file alone, so that any number of processes makes the same of it. JSON Lines are split
at b"\\n" only: U+2028 and its kind are ordinary characters.
"""

import csv
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from post_training.core.errors import DataError
from post_training.core.locate import data_suffix
from post_training.data.reading.compression import check_beginning, open_compressed
from post_training.data.reading.json_values import split_values
from post_training.data.reading.records import Block, Problem, Span, parse

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 8192
_LONGEST_LINE_BYTES = 256 << 20
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def _json_lines(file: Path) -> Iterator[tuple[int, int, bytes | Span]]:
    with open_compressed(file) as handle:
        begun = handle.read(BLOCK_BYTES)
        line, _, rest = begun.lstrip().partition(b"\n")
        if line[:1] in (b"[", b"{") and (found := _not_lines(line.strip(), rest)):
            raise DataError(
                f"{file}: is {found}, not JSON Lines, which hold one object a line; give it the suffix .json"
            )
        yield from _line_blocks(handle, begun, file)


def _not_lines(line: bytes, rest: bytes) -> str:
    """What a file is whose first line begins a value of several lines, or is all of an array of objects."""
    value = parse(line)
    array = line[:1] == b"["
    if isinstance(value, Problem) and value.reason == "undecodable_line":
        continues = rest.strip() and (line in (b"[", b"{") or (array and line[-1:] == b","))
        return ("a JSON array" if array else "JSON objects over several lines") if continues else ""
    return "a JSON array" if array and not rest.strip() and line[1:].lstrip()[:1] == b"{" else ""


def _json_file(file: Path) -> Iterator[tuple[int, int, Any]]:
    """An array of objects, or one object, or (as such files often are) JSON Lines under another name."""
    with open_compressed(file) as handle:
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
                yield len(values), len(values), values
                values, held = [], 0
        if len(values) == 1 and (size := _rows_in_columns(values[0])):
            remedy = "write it with pandas.DataFrame(...).to_json(path, orient='records', lines=True)"
            raise DataError(f"{file}: is columns of {size:,} values, not rows; {remedy}")
        if values:
            yield len(values), len(values), values


def _rows_in_columns(value: bytes) -> int:
    """Rows in an object that holds each column's values, as a list or by the number of the row; 0 where it is a row, or rows below a key."""
    found = parse(value)
    columns = list(found.values()) if isinstance(found, dict) else []
    columns = [list(c.values()) if isinstance(c, dict) and all(map(str.isdecimal, c)) else c for c in columns]
    if len(columns) < 2 or any(not isinstance(column, list) or len(column) != len(columns[0]) for column in columns):
        return 0
    turns = any(isinstance(value, dict) for column in columns for value in column)
    return 0 if turns or len(columns[0]) < 2 else len(columns[0])


def _line_blocks(handle: Any, begun: bytes, file: Path) -> Iterator[tuple[int, int, bytes | Span]]:
    """Blocks of complete lines; of a file that is not compressed only their positions."""
    compressed = file.name.lower().endswith((".gz", ".zst"))
    start = 0 if compressed else handle.tell() - len(begun)
    pending, lines = begun, 0
    while True:
        chunk = handle.read(BLOCK_BYTES)
        pending += chunk
        size = pending.rfind(b"\n") + 1 if chunk else len(pending)
        if size:
            block = pending[:size]
            own = block.count(b"\n") + (not block.endswith(b"\n"))
            yield _count_lines(block), own, (block if compressed else Span(start, size))
            lines += own
            start, pending = start + size, pending[size:]
        if not chunk:
            return
        if len(pending) > _LONGEST_LINE_BYTES:
            raise DataError(
                f"{file}: after {lines:,} lines: a line longer than {_LONGEST_LINE_BYTES >> 20} MiB; JSON Lines hold one row a line: "
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


def _separated(delimiter: str) -> Callable[[Path], Iterator[tuple[int, int, list[Any]]]]:
    def read(file: Path) -> Iterator[tuple[int, int, list[Any]]]:
        csv.field_size_limit(1 << 30)
        # Bytes that are not UTF-8 become lone surrogates, so that they cost their own row and not the file.
        with io.TextIOWrapper(open_compressed(file), encoding="utf-8", errors="surrogateescape", newline="") as handle:
            reader = csv.DictReader(handle, delimiter=delimiter, strict=True)
            try:
                names = list(reader.fieldnames or [])
                if not any(names):
                    raise DataError(f"{file}: has no header line; its first line must name the columns")
                if not all(map(str.isprintable, names)) and any("\ud800" <= c <= "\udfff" for c in "".join(names)):
                    raise DataError(f"{file}: line 1: the names of the columns are not UTF-8; save the file as UTF-8")
                if len(names) == 1 and (other := next((c for c in ";\t|" if c in names[0]), None)):
                    raise DataError(
                        f"{file}: line 1: is one column {names[0]!r}; separate by {delimiter!r}, not {other!r}"
                    )
                if len(set(names)) < len(names):
                    raise DataError(f"{file}: line 1: two columns have one name ({', '.join(names)}); rename one")
                rows = (_cells(row, len(names)) for row in reader)
                while block := list(islice(rows, 512)):
                    yield len(block), len(block), block
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


def _parquet(file: Path) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    with pq.ParquetFile(file) as opened:
        _check_names(opened.schema_arrow, file)
        held = sum(opened.metadata.row_group(index).total_byte_size for index in range(opened.num_row_groups))
        rows = max(1, opened.metadata.num_rows)
        batch_rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES * rows // max(1, held)))
        for batch in opened.iter_batches(batch_size=batch_rows):
            yield batch.num_rows, batch.num_rows, batch


def _arrow(file: Path) -> Iterator[tuple[int, int, pa.RecordBatch]]:
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
            # The batches of a writer that was killed look like a shorter stream; only the end mark is missing.
            source.seek(max(0, source.size() - len(_END_OF_STREAM)))
            if source.read() != _END_OF_STREAM:
                raise EOFError("the Arrow stream has no end mark: its writer did not finish") from None


def _check_names(schema: pa.Schema, file: Path) -> None:
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{file}: two columns have one name ({', '.join(schema.names)}); rename one")


def _slices(batch: pa.RecordBatch) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """A batch in pieces of the size of a block, once it is known to hold together: damaged offsets end the process."""
    batch.validate(full=True)
    rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES * batch.num_rows // max(1, batch.nbytes)))
    for start in range(0, batch.num_rows, rows):
        piece = batch.slice(start, rows)
        yield piece.num_rows, piece.num_rows, piece


_TEXT_READERS: dict[str, Callable[[Path], Iterator[tuple[int, int, Any]]]] = {
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


_UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError)


def read_blocks(files: Iterable[Path]) -> Iterator[Block]:
    """The records of the files in blocks, in order. Raises DataError with the place where a file cannot be read."""
    before = 0
    for file in files:
        lines = 0
        try:
            check_beginning(file)
            for size, own_lines, data in _READERS[data_suffix(file) or ""](file):
                if size:
                    yield Block(file, lines + 1, size, data, own_lines, before)
                lines += own_lines
        except DataError:
            raise
        except _UNREADABLE as error:
            raise unreadable(file, lines, error) from None
        before += lines


def unreadable(file: Path, rows: int, error: Exception) -> DataError:
    """The error of a file that cannot be read to its end."""
    problem = " ".join(str(error).split())
    return DataError(
        f"{file}: after {rows:,} rows: cannot be read ({problem}); check that it is complete, or fetch it again"
    )
