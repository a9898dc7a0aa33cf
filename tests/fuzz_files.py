"""Files of every format that hold given rows, with and without faults of a file: what people save, copy and cut off."""

import csv
import datetime
import decimal
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import strategies as st

Rows = list[Any]
Draw = Callable[..., Any]

_TIME = datetime.datetime(2024, 2, 29, 23, 59, 59, 999999)
# Column type -> one value of it: what tables hold beside text.
ODD_TYPES: dict[pa.DataType, Any] = {
    pa.decimal128(38, 10): decimal.Decimal("12345678901234567890.5"),
    pa.decimal256(60, 0): decimal.Decimal(10**50),
    pa.timestamp("ns"): 1_700_000_000_123_456_789,
    pa.timestamp("us", tz="Europe/Berlin"): _TIME,
    pa.timestamp("s"): 2**38,  # beyond the calendar
    pa.date32(): _TIME.date(),
    pa.date64(): _TIME.date(),
    pa.time64("ns"): 86_399_999_999_999,
    pa.duration("ns"): 5,
    pa.uint64(): 2**64 - 1,
    pa.float16(): 0.5,
    pa.float64(): float("nan"),
    pa.binary(): b"\xff\x00\x89PNG",
    pa.binary(3): b"abc",
    pa.large_binary(): b"text",
    pa.large_string(): "text",
    pa.string_view(): "text",
    pa.binary_view(): b"text",
    pa.null(): None,
    pa.bool_(): True,
    pa.map_(pa.string(), pa.int64()): [("a", 1), ("a", 2)],
    pa.list_(pa.struct([("x", pa.float32()), ("y", pa.list_(pa.string()))])): [{"x": 1.5, "y": None}, None],
    pa.list_(pa.int8(), 2): [1, 2],
    pa.large_list(pa.string()): ["a", None],
    pa.dictionary(pa.int32(), pa.string()): "text",
    pa.struct([("when", pa.timestamp("ns")), ("much", pa.decimal128(5, 2))]): {"when": 1, "much": None},
    pa.json_(): '{"a": [1, NaN]}',
}
# What a person's column of text is often stored as.
TEXT_TYPES = [pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.json_()]
OF_ARROW_ALONE = [
    pa.list_view(pa.int32()),
    pa.run_end_encoded(pa.int32(), pa.string()),
    pa.month_day_nano_interval(),
    pa.dense_union([pa.field("a", pa.int32()), pa.field("b", pa.string())]),
]


_SHARD = "data-00000-of-00001"


@dataclass
class File:
    """One file to be read."""

    suffix: str
    content: bytes
    ids: list[str | None]
    """The id of the row at each number, from 1: None for a blank line; empty where a fault hides the order."""
    what: list[str] = field(default_factory=list)
    """How it was made."""
    beside: dict[str, bytes] | None = None
    """Files of a folder of its own, which is the dataset's path; None where the path is the file."""

    def __repr__(self) -> str:
        beside = "" if self.beside is None else f" in a folder with {self.beside}"
        return f"{self.suffix} ({'; '.join(self.what)}){beside}: {self.content[:600]!r}"

    def write(self, folder: Path, name: str) -> Path:
        """On disk; returns the path."""
        if self.beside is not None:
            folder = folder / name
            folder.mkdir()
            for other, content in self.beside.items():
                (folder / other).write_bytes(content)
            name = _SHARD
        path = folder / f"{name}{self.suffix}"
        path.write_bytes(self.content)
        return path

    def given(self, path: Path) -> str:
        """The dataset's path, of the path where it was written."""
        return str(path if self.beside is None else path.parent)


def _dumped(row: Any, ascii_only: bool = True) -> bytes:
    return json.dumps(row, ensure_ascii=ascii_only).encode(errors="surrogatepass")


def ids_of(rows: Rows) -> list[str | None]:
    """`id` of each row; a row that is no object, or has lost it, has an empty one."""
    found = [row.get("id") if isinstance(row, dict) else None for row in rows]
    return [one if isinstance(one, str) and one.startswith("row") else "" for one in found]


def _json_lines(draw: Draw, rows: Rows) -> File:
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b" \n", b"\n\n", b"\n \t\r\n", b"mixed"]))
    ascii_only, bom = draw(st.booleans()), draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]))
    content, ids = bom, []
    for number, (row, own) in enumerate(zip(rows, ids_of(rows), strict=True)):
        after = (b"\n", b"\r\n", b"\n\n")[number % 3] if end == b"mixed" else end
        content += _dumped(row, ascii_only) + after
        ids += [own, *[None] * (after.count(b"\n") - 1)]
    if draw(st.booleans()):
        content = content.rstrip(b" \t\r\n")
        ids = ids[: max(index for index, one in enumerate(ids, 1) if one is not None)]
    return File(".jsonl", content, ids, [f"line ends {end!r}"])


def _json(draw: Draw, rows: Rows) -> File:
    indent = draw(st.sampled_from([None, 1, "\t"]))
    text = json.dumps(rows, indent=indent, ensure_ascii=draw(st.booleans()))
    content = draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\r\n "])) + text.encode(errors="surrogatepass")
    return File(".json", content, ids_of(rows), [f"indent {indent!r}"])


def _separated(draw: Draw, rows: Rows) -> File:
    suffix, delimiter = draw(st.sampled_from([(".csv", ","), (".tsv", "\t")]))
    rows = [row if isinstance(row, dict) else {"id": row} for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, delimiter=delimiter, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name, "") for name in names]
        writer.writerow(["" if c is None else c if isinstance(c, str) else json.dumps(c) for c in cells])
    bom = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    content = bom + lines.getvalue().encode(errors="surrogatepass")
    return File(suffix, content, [], [f"delimiter {delimiter!r}"])


def _column(values: list[Any], wanted: pa.DataType | None = None) -> pa.Array:
    """Values as a column: of their own type, or where they have none in common as text of JSON."""
    if wanted is not None:
        texts = [v if isinstance(v, str) or v is None else json.dumps(v) for v in values]
        try:
            if wanted == pa.json_():
                return pa.ExtensionArray.from_storage(
                    wanted, pa.array([None if v is None else json.dumps(v) for v in values], pa.string())
                )
            return pa.array(texts).cast(wanted)
        except (pa.ArrowException, UnicodeEncodeError):
            pass
    for made in (values, [v if isinstance(v, str) or v is None else json.dumps(v) for v in values]):
        try:
            column = pa.array(made)
            column.to_pylist()
            return column
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
            continue
    return pa.nulls(len(values), pa.string())


def _odd_column(kind: pa.DataType, rows: int) -> pa.Array:
    value = ODD_TYPES[kind]
    values = [None if number % 3 == 2 else value for number in range(rows)]
    if kind == pa.json_():
        return pa.ExtensionArray.from_storage(kind, pa.array(values, pa.string()))
    return pa.array(values, kind)


def _table(draw: Draw, rows: Rows, arrow: bool) -> pa.Table:
    rows = [row if isinstance(row, dict) else {"id": json.dumps(row)} for row in rows]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if "\0" not in name]
    text_type = draw(st.sampled_from([None, None, *TEXT_TYPES]))
    columns = {
        name: _column([row.get(name) for row in rows], text_type if name != "id" else None)
        for name in names
        if _is_text(name)
    }
    for kind in draw(st.lists(st.sampled_from(list(ODD_TYPES)), max_size=3, unique=True)):
        columns[f"odd {kind}"[:40]] = _odd_column(kind, len(rows))
    if arrow:
        for kind in draw(st.lists(st.sampled_from(OF_ARROW_ALONE), max_size=1)):
            columns[f"odd {kind}"[:40]] = pa.nulls(len(rows), kind)
    return pa.table(columns)


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _has_empty_struct(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and not kind.num_fields:
        return True
    return any(_has_empty_struct(kind.field(index).type) for index in range(kind.num_fields))


def _ids(table: pa.Table) -> list[str | None]:
    """Ids of the rows of a table; an odd one is not looked at."""
    if "id" not in table.column_names or table.schema.field("id").type != pa.string():
        return [""] * table.num_rows
    return ids_of(table.select(["id"]).to_pylist())


def _parquet(draw: Draw, rows: Rows) -> File:
    table, sink = _table(draw, rows, arrow=False), pa.BufferOutputStream()
    for index, name in enumerate(table.column_names):
        if _has_empty_struct(table.schema.field(name).type):  # which Parquet has not
            table = table.set_column(index, name, _column([json.dumps(v) for v in table.column(name).to_pylist()]))
    size = draw(st.sampled_from([None, 1, 2]))
    packing = draw(st.sampled_from(["snappy", "zstd", "gzip", "none"]))
    pq.write_table(table, sink, row_group_size=size, compression=packing)
    ids = _ids(table)
    return File(".parquet", sink.getvalue().to_pybytes(), ids, [f"row groups of {size}, {packing}", str(table.schema)])


def _arrow(draw: Draw, rows: Rows, streams: bool = False) -> File:
    table, sink = _table(draw, rows, arrow=True), pa.BufferOutputStream()
    new = pa.ipc.new_stream if streams else draw(st.sampled_from([pa.ipc.new_file, pa.ipc.new_stream]))
    packing = draw(st.sampled_from([None, "zstd", "lz4"]))
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=packing)) as writer:
        writer.write_table(table, max_chunksize=draw(st.sampled_from([1, 2, 99])))
    return File(".arrow", sink.getvalue().to_pybytes(), _ids(table), [new.__name__, str(packing), str(table.schema)])


def _saved(draw: Draw, rows: Rows) -> File:
    """A folder of `save_to_disk`."""
    made = _arrow(draw, rows, streams=True)
    state = {"_data_files": [{"filename": f"{_SHARD}.arrow"}], "_fingerprint": "0", "_split": None}
    made.beside = {"state.json": json.dumps(state).encode(), "dataset_info.json": b"{}"}
    made.what.append("save_to_disk")
    return made


FORMATS = {
    "jsonl": _json_lines,
    "json": _json,
    "separated": _separated,
    "parquet": _parquet,
    "arrow": _arrow,
    "saved": _saved,
}
SUFFIXES = (
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
    ".jsonl.gz",
    ".json.zst",
    ".csv.gz",
    ".xlsx",
    ".zip",
    ".ndjson",
    "",
)
INSERTED = [
    b"\n", b"\r", b"\0", b"\xff", b"{", b"}", b"]", b'"', b"\\", b",", b"\t", b"NaN", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"[" * 3000,
    b'{"id":' * 1500, b"null\n", b'""', b"\xe2\x80\xa8", b"\x1a", b"//",
    b"PK\x03\x04", b"<?xml", b"{\0", b"\x1f\x8b", b"(\xb5/\xfd",
]  # fmt: skip


@st.composite
def files(draw: Draw, rows: Rows) -> File:
    """A file of the rows, packed or not; one in three has a fault."""
    kind = draw(st.sampled_from(sorted(FORMATS)))
    made: File = FORMATS[kind](draw, rows)
    faults = draw(st.sampled_from([0, 0, 0, 0, 1, 1, 2]))
    inner = draw(st.booleans())  # before or after it is packed
    if inner:
        _spoil(draw, made, faults)
    if kind not in ("parquet", "arrow", "saved"):
        packed = draw(st.sampled_from(["", "", ".gz", ".zst"]))
        if packed:
            members = draw(st.sampled_from([1, 2]))  # files that were packed and then joined
            cut = len(made.content) // members
            parts = [made.content[:cut], made.content[cut:]] if members == 2 else [made.content]
            pack = gzip.compress if packed == ".gz" else zstandard.compress
            made.content, made.suffix = b"".join(map(pack, parts)), made.suffix + packed
    if not inner:
        _spoil(draw, made, faults)
    if kind == "saved" and draw(st.integers(0, 3)) == 3:
        name = draw(st.sampled_from(sorted(made.beside)))
        other = File("", made.beside[name], [])
        _spoil(draw, other, 1)
        made.beside[name], made.ids = other.content, []
    elif kind != "saved" and draw(st.integers(0, 9)) == 9:
        made.beside = draw(
            st.sampled_from([{}, {"README.md": b"rows"}, {".hidden.jsonl": b"{"}, {"dataset_dict.json": b"[]"}])
        )
    if draw(st.integers(0, 20)) == 20:
        made.suffix, made.ids = draw(st.sampled_from(SUFFIXES)), []
        made.what.append("another suffix")
    if draw(st.integers(0, 20)) == 20:
        made.suffix = made.suffix.upper()
    return made


def _spoil(draw: Draw, file: File, faults: int) -> None:
    for _ in range(faults):
        kind = draw(st.sampled_from(["cut", "insert", "remove", "flip", "twice", "zeros", "nothing"]))
        size = len(file.content)
        place = draw(st.integers(0, size))
        more = draw(st.integers(1, 40))
        before, after = file.content[:place], file.content[place:]
        if kind == "cut":
            file.content = before
        elif kind == "insert":
            file.content = before + draw(st.sampled_from(INSERTED)) + after
        elif kind == "remove":
            file.content = before + after[more:]
        elif kind == "flip" and after:
            file.content = before + bytes([after[0] ^ draw(st.integers(1, 255))]) + after[1:]
        elif kind == "twice":
            file.content = before + after[:more] + after
        elif kind == "zeros":
            file.content = before + b"\0" * more + after[more:]
        elif kind == "nothing":
            file.content = b""
        file.ids = []
        file.what.append(f"{kind} at {place}")
