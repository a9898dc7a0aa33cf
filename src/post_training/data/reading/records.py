"""A block of a file's records -> rows; a record that cannot be a row becomes a `Problem`."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Problem:
    """A record that is not a row."""

    reason: str
    detail: str
    excerpt: str


@dataclass
class Span:
    """Bytes of a file that a worker reads again: cheaper than sending them."""

    start: int
    size: int


@dataclass
class Block:
    """Consecutive records of one file."""

    file: Path
    first: int
    """Number of its first line (of JSON Lines, blank ones counted) or row in the file, from 1."""
    size: int
    """Records."""
    data: bytes | Span | list[Any] | pa.RecordBatch
    """Lines of JSON, or their position in the file; values of JSON, or rows; a batch of columns."""
    lines: int
    """Lines or rows, blank lines among them."""
    before: int = 0
    """Lines or rows of the files before its own: with the number in the file, a row's number over all files."""
    skip: int = 0
    """Records at its beginning that are not selected."""
    take: int = field(default=1 << 62)
    """Most records that are selected after those."""

    @property
    def last(self) -> int:
        """Number of its last line or row in the file."""
        return self.first + self.lines - 1

    @property
    def rows(self) -> int:
        """Number of selected records."""
        return max(0, min(self.size - self.skip, self.take))

    def __getstate__(self) -> dict[str, Any]:
        """A pickled slice of a batch would contain all of the batch."""
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

    def records(self) -> Iterator[tuple[int, Any]]:
        """The selected records by their number in the file, each as JSON bytes, a row or a `Problem`."""
        data = self.data
        if isinstance(data, Span):
            with self.file.open("rb") as handle:
                handle.seek(data.start)
                data = handle.read(data.size)
        if isinstance(data, bytes):
            lines = ((number, raw.strip(b" \t\r")) for number, raw in enumerate(data.split(b"\n"), self.first))
            return islice((entry for entry in lines if entry[1]), self.skip, self.skip + self.rows)
        if isinstance(data, pa.RecordBatch):
            return enumerate(_rows_of_batch(data.slice(self.skip, self.rows)), self.first + self.skip)
        return enumerate(data[self.skip : self.skip + self.rows], self.first + self.skip)


def parse(line: bytes) -> dict[str, Any] | Problem:
    """One JSON object as a row."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if line[:3] == _BOM:  # of files that were joined
            return parse(line[3:])
        reason = "not_a_number" if b"NaN" in line or b"Infinity" in line else "undecodable_line"
        return Problem(reason, f"{error.msg} at column {error.colno}", line[:200].decode(errors="replace"))
    if type(value) is not dict:
        found = type(value).__name__
        return Problem("not_an_object", f"found {found}, expected an object", line[:200].decode(errors="replace"))
    # Of two equal keys in an object the parser keeps the last; the number of quotation marks shows the missing one.
    try:
        written = orjson.dumps(value).count(b'"')
    except orjson.JSONEncodeError:  # nested more deeply than is written
        written = -1
    try:
        if line.count(b'"') > written and (key := _repeated_key(line)) is not None:
            return Problem("duplicate_key", f"{key!r} is repeated in one object", line[:200].decode(errors="replace"))
    except RecursionError:
        return Problem(
            "nested_too_deeply", "nested more deeply than can be checked", line[:200].decode(errors="replace")
        )
    return value


def _repeated_key(line: bytes) -> str | None:
    repeated: list[str] = []

    def keys(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        repeated.extend(name for name in names if names.count(name) > 1)

    json.loads(line, object_pairs_hook=keys)
    return repeated[0] if repeated else None


def _rows_of_batch(batch: pa.RecordBatch) -> list[Any]:
    """Rows of a batch of columns; a row with text that is not UTF-8, or a date beyond the calendar, is a `Problem`."""
    try:
        rows: list[Any] = batch.to_pylist(maps_as_pydicts=_maps(batch.schema))
    except (ValueError, OverflowError, KeyError, TypeError, pa.ArrowException):
        if batch.num_rows > 1:
            return [row for index in range(batch.num_rows) for row in _rows_of_batch(batch.slice(index, 1))]
        return [_damaged(batch)]
    if any(_has_null_fields(column) for column in batch.columns):
        rows = [{name: _without_nulls(value) for name, value in row.items()} for row in rows]
    if texts := [field for field in batch.schema if _holds_json(field.type)]:
        rows = [_parsed_columns(row, texts) for row in rows]
    if names := [field.name for field in batch.schema if _holds(field.type, _is_binary)]:
        rows = [row | {name: _as_text(row[name]) for name in names} if type(row) is dict else row for row in rows]
    return rows


def _damaged(row: pa.RecordBatch) -> Problem:
    """Which columns of a row cannot be read, and the others."""
    values, problems = {}, []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            (values[name],) = column.to_pylist(maps_as_pydicts=_maps([column]))
        except KeyError as error:
            return Problem("duplicate_key", f"column {name!r}: {error.args[0]}", str(values)[:200])
        except (ValueError, OverflowError, TypeError, pa.ArrowException) as error:
            problems.append(f"column {name!r}: {' '.join(str(error).split())}")
    return Problem("undecodable_line", "; ".join(problems), str(values)[:200])


def _maps(columns: Any) -> Any:
    """How Arrow is to give maps: as objects, of which a key is there once."""
    return "strict" if any(_holds_map(column.type) for column in columns) else None


def _holds_map(kind: pa.DataType) -> bool:
    return _holds(kind, pa.types.is_map)


def _holds_json(kind: pa.DataType) -> bool:
    """Whether a column holds JSON as text at any depth, as the type `Json` of `datasets` does."""
    return _holds(kind, lambda part: getattr(part, "extension_name", "") == "arrow.json")


def _holds(kind: pa.DataType, is_wanted: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type is a wanted one, or holds one at any depth."""
    return is_wanted(kind) or any(_holds(kind.field(index).type, is_wanted) for index in range(kind.num_fields))


def _is_binary(kind: pa.DataType) -> bool:
    of_values = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_known(of_values) for is_known in known)


def _as_text(value: Any) -> Any:
    """Bytes as text where they are UTF-8, as many writers store it; others, such as a picture's, as they are."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {key: _as_text(child) for key, child in value.items()}
    return [_as_text(child) for child in value] if isinstance(value, list) else value


def _parsed_columns(row: dict[str, Any], fields: list[pa.Field]) -> Any:
    try:
        return row | {field.name: _parsed_json(row[field.name], field.type) for field in fields}
    except orjson.JSONDecodeError as error:
        return Problem("undecodable_line", f"a column of JSON: {error}", str(row)[:200])


def _parsed_json(value: Any, kind: pa.DataType) -> Any:
    if value is None or not _holds_json(kind):
        return value
    if getattr(kind, "extension_name", "") == "arrow.json":
        return orjson.loads(value)
    if isinstance(value, list):
        return [_parsed_json(item, kind.value_type) for item in value]
    if pa.types.is_map(kind):
        return {name: _parsed_json(item, kind.item_type) for name, item in value.items()}
    return {name: _parsed_json(item, kind.field(name).type) for name, item in value.items()}


def _has_null_fields(array: pa.Array) -> bool:
    """Whether a struct at any depth has a null field."""
    if pa.types.is_struct(array.type):
        fields = array.flatten()
        return any(field.null_count or _has_null_fields(field) for field in fields)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _has_null_fields(array.flatten())
    return False


def _without_nulls(value: Any) -> Any:
    """Without null fields: columns give every object the keys of all objects."""
    if isinstance(value, dict):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    return [_without_nulls(child) for child in value] if isinstance(value, list) else value
