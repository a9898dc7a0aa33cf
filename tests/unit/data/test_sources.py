"""Every format, and every fault of one with its outcome: rows, a problem with a reason, or one line naming the place."""

import bz2
import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from post_training.core.errors import DataError
from post_training.data.reading.readers import read_blocks
from post_training.data.reading.records import Problem, parse

ROWS = [{"a": "one", "b": "1"}, {"a": "zwei\u2028drei \u0085", "b": "2"}, {"a": "三", "b": "x\ny"}]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
LONG = b"".join(json.dumps({"n": n, "text": f"{n * 7919 % 10007:b}" * 3}).encode() + b"\n" for n in range(5000))


def records_of(*paths):
    for block in read_blocks(paths):
        for number, record in block.records():
            yield block.file, number, parse(record) if isinstance(record, bytes) else record


def rows_of(*paths):
    return [row for _, _, row in records_of(*paths)]


def reasons_of(path):
    return [row.reason if isinstance(row, Problem) else None for row in rows_of(path)]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def arrow(path, new):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    "name, content",
    [
        ("x.jsonl", LINES),
        ("crlf.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES),
        ("blank.jsonl", b"\n" + LINES.replace(b"\n", b"\n\n  \n")),
        ("no_last_newline.jsonl", LINES.rstrip(b"\n")),
        ("x.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("two_members.jsonl.gz", gzip.compress(LINES[:60], mtime=0) + gzip.compress(LINES[60:], mtime=0)),
        ("x.jsonl.zst", zstandard.compress(LINES)),
        ("two_frames.jsonl.zst", zstandard.compress(LINES[:60]) + zstandard.compress(LINES[60:])),
        ("skippable_frame.jsonl.zst", b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + zstandard.compress(LINES)),
        ("array.json", json.dumps(ROWS, indent=2).encode()),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        ("array.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("lines_under_another_name.json", LINES),
        ("x.csv", "a,b\none,1\nzwei\u2028drei \u0085,2\n三,\"x\ny\"\n".encode()),
        ("bom_blank.csv", "\ufeffa,b\r\none,1\r\n\r\nzwei\u2028drei \u0085,2\r\n三,\"x\ny\"\r\n".encode()),
        ("x.tsv", "a\tb\none\t1\nzwei\u2028drei \u0085\t2\n三\t\"x\ny\"\n".encode()),
    ],
)  # fmt: skip
def test_formats_of_text(tmp_path, name, content):
    assert rows_of(write(tmp_path, name, content)) == ROWS


def test_formats_of_columns(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet", row_group_size=2)
    arrow(tmp_path / "file.arrow", pa.ipc.new_file)
    arrow(tmp_path / "stream.arrow", pa.ipc.new_stream)
    for path in sorted(tmp_path.iterdir()):
        assert rows_of(path) == ROWS, path


def test_shards_of_save_to_disk_in_order(tmp_path):
    from post_training.core.locate import data_files

    many = [{"n": n} for n in range(2500)]
    datasets.Dataset.from_list(many).save_to_disk(tmp_path / "saved", num_shards=3)
    files = data_files(str(tmp_path / "saved"), "path")
    assert len(files) == 3
    assert rows_of(*files) == many


def test_one_object_is_one_row_and_places_count_from_one(tmp_path):
    first, second = write(tmp_path, "a.json", b'{"a": 1}'), write(tmp_path, "b.jsonl", LINES)
    found = [(file, number) for file, number, _ in records_of(first, second)]
    assert found == [(first, 1), (second, 1), (second, 2), (second, 3)]


@pytest.mark.parametrize(
    "name, content, reasons",
    [
        ("cut.jsonl", LINES + b'{"a": "on', [None, None, None, "undecodable_line"]),
        ("latin1.jsonl", '{"a": "é"}\n{"a": "e"}'.encode("latin-1"), ["undecodable_line", None]),
        ("nul.jsonl", b'{"a": "x\x00y"}\n\x00\x00\n{"a": "\\u0000"}\n', ["undecodable_line", "undecodable_line", None]),
        ("nan.jsonl", b'{"a": NaN}\n{"a": -Infinity}\n{"a": 1}\n', ["not_a_number", "not_a_number", None]),
        ("surrogate.jsonl", b'{"a": "\\ud83d"}\n{"a": "\\ud83d\\ude00"}\n', ["undecodable_line", None]),
        ("deep.jsonl", b"[" * 100_000 + b'\n{"a": 1}\n', ["undecodable_line", None]),
        ("kinds.jsonl", b'1\n"text"\n[{}]\nnull\n{}\n', ["not_an_object"] * 4 + [None]),
        ("latin1.json", '[{"a": "é"}, {}]'.encode("latin-1"), ["undecodable_line", None]),
        ("nan.json", b'[{"a": NaN}, {"a": 1}]', ["not_a_number", None]),
        ("kinds.json", b'[1, {"a": 1}]', ["not_an_object", None]),
        ("cells.csv", b"a,b\n1\n1,2\n1,2,3\n", ["wrong_number_of_cells", None, "wrong_number_of_cells"]),
        ("latin1.csv", "a,b\né,1\nx,2\n".encode("latin-1"), ["undecodable_line", None]),
    ],
)
def test_a_bad_record_costs_itself(tmp_path, name, content, reasons):
    assert reasons_of(write(tmp_path, name, content)) == reasons


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("cut.jsonl.gz", gzip.compress(LONG, mtime=0)[:-2000], "after "),
        (
            "damaged.jsonl.gz",
            gzip.compress(LONG, mtime=0)[:3000] + b"\xff" * 400 + gzip.compress(LONG, mtime=0)[3400:],
            "after ",
        ),
        ("text.jsonl.gz", LINES, "not gzip data; take the suffix .gz away"),
        ("cut.jsonl.zst", zstandard.compress(LONG)[:-2000], "cannot be read (Truncated compressed stream)"),
        ("between.jsonl.zst", zstandard.compress(LONG) + zstandard.compress(LONG)[:50], "Truncated compressed stream"),
        ("bz2.jsonl.zst", bz2.compress(LINES), "bzip2 data; unpack it"),
        ("empty.json", b"", "line 1, column 1"),
        ("cut.json", json.dumps(ROWS, indent=1).encode()[:-9], "line "),
        ("utf16.jsonl", '{"a": 1}\n'.encode("utf-16"), "UTF-16 text; convert it to UTF-8"),
        ("deep.json", b"[" * 100_000, "line 1"),
        ("comma.json", b'[{"a": 1},\n {"a": 2} {"a": 3}]', "line 2: between two values is no comma"),
        ("no_header.csv", b"", "no header line"),
        ("one_name.csv", b"a,a\n1,2\n", "two columns have one name (a, a)"),
        ("quote.csv", b'a,b\n1,2\n"x,3\n', "line "),
        ("text.parquet", LINES, "after 0 rows"),
        ("cut.parquet", b"PAR1" + LONG[:500], "after 0 rows"),
        ("text.arrow", LINES, "after 0 rows"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(tmp_path, name, content, said):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        rows_of(path)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_cut_arrow_and_parquet(tmp_path):
    """Cut anywhere, an Arrow file or Parquet file is refused, whatever the library raises."""
    arrow(tmp_path / "file.arrow", pa.ipc.new_file)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for size in range(0, len(whole) - 1, 37):
            with pytest.raises(DataError):
                rows_of(write(tmp_path, f"cut{path.suffix}", whole[:size]))


def test_a_stream_whose_writer_was_killed(tmp_path):
    """Cut anywhere, between batches too, an Arrow stream is refused: what is left reads as a shorter stream."""
    path, table = tmp_path / "stream.arrow", pa.Table.from_pylist(ROWS * 4)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=3):
            writer.write_batch(batch)
    whole = path.read_bytes()
    assert rows_of(path) == ROWS * 4
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError):
            rows_of(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl: after 0 rows: .*No such file"):
        rows_of(tmp_path / "gone.jsonl")


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
)
def test_no_bytes_at_all_make_a_traceback(tmp_path_factory, content, name):
    path = write(tmp_path_factory.mktemp("any"), name, content)
    try:
        for row in rows_of(path):
            assert isinstance(row, dict | Problem)
    except DataError:
        pass


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=30), max_size=3), min_size=1, max_size=6))
def test_what_json_wrote_is_read(tmp_path_factory, rows):
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path = write(tmp_path_factory.mktemp("any"), "x.jsonl.zst", zstandard.compress(content))
    assert rows_of(path) == rows
