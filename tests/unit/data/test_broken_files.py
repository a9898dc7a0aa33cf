"""Broken files of every kind, one fault each, through download's checks and the transform stage: the outcome is rows with
counts that add up and a reason for each that is missing, or one line that names the file, the place and the remedy."""

import gzip
import io
import json
import os
import random
import tarfile
from functools import cache

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from post_training.config.names import dataset_name
from post_training.core.errors import ConfigError, DataError
from post_training.core.locate import data_files
from post_training.data import registry
from post_training.data.apply_transform import Application
from post_training.data.reading.readers import read_blocks
from post_training.data.transform import _selected

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
GOOD = {"messages": [USER, ANSWER]}
ROWS = [{"messages": [{**USER, "content": f"q{n}"}, ANSWER]} for n in range(40)]


def dumped(*rows):
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def said(*turns, **more):
    """A row of (role, content) pairs, or of whole messages."""
    turns = [turn if isinstance(turn, dict) else dict(zip(("role", "content"), turn, strict=True)) for turn in turns]
    return {"messages": turns, **more}


def arrow(rows, new):
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return sink.getvalue().to_pybytes()


def parquet(rows, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue().to_pybytes()


LINES = dumped(*ROWS)
GZIP, ZSTD = gzip.compress(LINES), zstandard.compress(LINES)
PARQUET, ARROW, STREAM = parquet(ROWS), arrow(ROWS, pa.ipc.new_file), arrow(ROWS, pa.ipc.new_stream)
CSV = b"question,answer\n" + b"".join(b'"q%d, quoted",a\n' % n for n in range(40))
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
TOOL = {"role": "tool", "content": "1"}
BIG = "9" * 30

# A line of JSON that stands between good ones -> the reason why it is rejected, or None where it is a row like others.
FAULTY_LINES = {
    "cut off": (b'{"messages": [{"role": "us', "undecodable_line"),
    "not UTF-8": ('{"messages": "é"}'.encode("latin-1"), "undecodable_line"),
    "a NUL byte": (b'{"messages": "a\x00"}', "undecodable_line"),
    "NUL bytes alone": (b"\x00\x00\x00", "undecodable_line"),
    "half a surrogate pair": (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "undecodable_line"),
    "a raw control character": (b'{"messages": "a\x07"}', "undecodable_line"),
    "nested too deeply": (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", "undecodable_line"),
    "two values": (b"{} {}", "undecodable_line"),
    "single quotes": (b"{'messages': []}", "undecodable_line"),
    "NaN": (json.dumps({**GOOD, "score": float("nan")}).encode(), "not_a_number"),
    "infinity": (json.dumps({**GOOD, "score": float("-inf")}).encode(), "not_a_number"),
    "a key twice": (b'{"messages": [], "messages": [{"role": "user"}]}', "duplicate_key"),
    "a key twice, deep": (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "duplicate_key"),
    "a list": (b"[1]", "not_an_object"),
    "a text": (b'"messages"', "not_an_object"),
    "null": (b"null", "not_an_object"),
    "another schema": (dumped({"prompt": "q", "completion": "a"}).strip(), "missing_column"),
    "a null column": (dumped({"messages": None}).strip(), "missing_column"),
    "text for messages": (dumped({"messages": "hello"}).strip(), "not_json"),
    "no message": (dumped({"messages": []}).strip(), "empty_conversation"),
    "messages of text": (dumped({"messages": ["hello"]}).strip(), "wrong_type"),
    "content is a number": (dumped(said(("user", 1), ANSWER)).strip(), "wrong_type"),
    "content is null": (dumped(said(USER, ("assistant", None))).strip(), "wrong_type"),
    "content is an object": (dumped(said(USER, ("assistant", {"text": "a"}))).strip(), "wrong_type"),
    "no content": (dumped(said({"role": "user"}, ANSWER)).strip(), "wrong_type"),
    "an image": (dumped(said(("user", [{"type": "image_url", "image_url": "x"}]), ANSWER)).strip(), "unsupported_content"),
    "a block without text": (dumped(said(("user", [{"type": "text"}]), ANSWER)).strip(), "wrong_type"),
    "empty content": (dumped(said(USER, ("assistant", ""))).strip(), "empty_content"),
    "white space for content": (dumped(said(("user", " \n\u2003"), ANSWER)).strip(), "empty_content"),
    "an unknown role": (dumped(said(("narrator", "x"), USER, ANSWER)).strip(), "unknown_role"),
    "no role": (dumped(said({"content": "q"}, ANSWER)).strip(), "unknown_role"),
    "two user turns": (dumped(said(USER, USER, ANSWER)).strip(), "role_order"),
    "two answers": (dumped(said(USER, ANSWER, ANSWER)).strip(), "role_order"),
    "an answer first": (dumped(said(ANSWER, USER, ANSWER)).strip(), "role_order"),
    "system in the middle": (dumped(said(USER, ("system", "s"), ANSWER)).strip(), "role_order"),
    "a result of no call": (dumped(said(USER, TOOL, ANSWER)).strip(), "role_order"),
    "no answer": (dumped(said(USER)).strip(), "no_assistant_turn"),
    "a call of nothing": (dumped(said(USER, {**CALL, "tool_calls": [{"id": "1"}]}, TOOL, ANSWER)).strip(), "bad_tool_call"),
    "arguments that are not JSON": (
        dumped(said(USER, {**CALL, "tool_calls": [{"name": "f", "arguments": "{x"}]}, TOOL, ANSWER)).strip(),
        "bad_tool_call",
    ),
    "a huge argument": (
        dumped(said(USER, {**CALL, "tool_calls": [{"name": "f", "arguments": f'{{"x": {BIG}}}'}]}, TOOL, ANSWER)).strip(),
        "huge_number",
    ),
    "tools that are not JSON": (dumped(said(USER, ANSWER, tools="{")).strip(), "wrong_type"),
    "a turn of weight 0": (dumped(said(USER, {**ANSWER, "weight": 0})).strip(), "no_trained_turn"),
    "a turn of weight a half": (dumped(said(USER, {**ANSWER, "weight": 0.5})).strip(), "train_flag"),
    "flags that disagree": (dumped(said(USER, {**ANSWER, "train": True, "loss": 0})).strip(), "train_flag"),
    "zero-width characters for content": (dumped(said(("user", "\u200b \ufeff"), ANSWER)).strip(), "empty_content"),
    "an escaped NUL": (b'{"messages": [{"role": "user", "content": "a\\u0000b"}, {"role": "assistant", "content": "b"}]}', "nul_character"),
    "a place for a picture": (dumped({**said(("user", "<image> what?"), ANSWER), "images": ["x.png"]}).strip(), "unsupported_content"),
    # What is no fault, though it trips others up.
    "blank lines": (b"\n \t\n\r\n" + dumped(GOOD).strip(), None),
    "CRLF": (dumped(GOOD).strip() + b"\r", None),
    "U+2028 and U+0085": (dumped(said(("user", "a\u2028b\u0085c"), ANSWER)).strip(), None),
    "200,000 characters": (dumped(said(("user", "long " * 40_000), ANSWER)).strip(), None),
    "a huge number elsewhere": (dumped({**GOOD, "id": int(BIG)}).strip(), None),
    "other columns": (dumped({**GOOD, "source": None, "tags": [1, "a", {}]}).strip(), None),
    "quotes in another spelling": (b'{"messages": [{"role": "user", "content": "\\u0022"}, {"role": "assistant", "content": "\\""}]}', None),
    "typed blocks": (dumped(said(("user", [{"type": "text", "text": "q"}]), ANSWER)).strip(), None),
    "a call and its result": (dumped(said(USER, CALL, TOOL, ANSWER)).strip(), None),
    "the user last": (dumped(said(USER, ANSWER, USER)).strip(), None),
}  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def assert_adds_up(manifest):
    found = json.loads(manifest.read_text())
    assert found["rows_in"] == found["rows_out"] + sum(found["dropped"].values())
    assert found["examples"] == len(lines(manifest.parent / "rows.jsonl"))
    rejects = lines(manifest.parent / "rejects.jsonl")
    assert len(rejects) == sum(found["dropped"].values()) + sum(found["dropped_examples"].values())
    assert all(set(entry) == {"file", "line", "row", "reason", "detail", "excerpt"} for entry in rejects)
    return found


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_faulty_line_costs_itself(stages, tmp_path, suffix):
    """All faults in one file, a good row after each: rejected are these rows, for these reasons, and no other."""
    path = tmp_path / f"x.{suffix}"
    faults = {
        name: fault
        for name, fault in FAULTY_LINES.items()
        if suffix == "jsonl" or fault[0][:1] + fault[0][-1:] == b"{}"
    }
    faults.pop("two values", None) if suffix == "json" else None
    between = b"\n" if suffix == "jsonl" else b",\n"
    good = dumped(GOOD).strip()
    content = between.join(line for fault, _ in faults.values() for line in (fault, good))
    path.write_bytes(b"[%b]" % content if suffix == "json" else content)
    manifest = stages.transform(path, max_reject_fraction=0.9)
    found = assert_adds_up(manifest)
    rejects = lines(manifest.parent / "rejects.jsonl")
    expected = [(name, 2 * n + 1, reason) for n, (name, (_, reason)) in enumerate(faults.items()) if reason]
    names = {2 * n + 1: name for n, name in enumerate(faults)}
    assert [(names.get(entry["row"]), entry["row"], entry["reason"]) for entry in rejects] == expected
    assert found["rows_in"] == 2 * len(faults) and found["rows_out"] == 2 * len(faults) - len(expected)
    assert all(entry["file"] == str(path) and len(entry["excerpt"]) <= 200 for entry in rejects)


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
FAULTY_PAIRS = {
    "identical answers": ({**PAIR, "rejected": "a"}, "identical_pair"),
    "an empty answer": ({**PAIR, "rejected": " "}, "empty_content"),
    "no rejected answer": ({"prompt": "q", "chosen": "a"}, "missing_column"),
    "a null answer": ({**PAIR, "chosen": None}, "wrong_type"),
    "no prompt and no shared prefix": ({**PAIR, "prompt": None}, "no_shared_prefix"),
    "parted at the user": (
        {"chosen": [USER, ANSWER, ("user", "x"), ANSWER], "rejected": [USER, ANSWER, ("user", "y"), ANSWER]},
        "no_shared_prefix",
    ),
    "an answer of the user's": ({**PAIR, "chosen": [USER]}, "no_assistant_turn"),
    "a prompt that is answered": ({**PAIR, "prompt": [USER, ANSWER]}, "role_order"),
    "the user last": ({**PAIR, "chosen": [ANSWER, USER]}, None),
}


def test_a_faulty_pair_costs_itself(stages, tmp_path):
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        for row, _ in FAULTY_PAIRS.values():
            turns = {key: said(*value)["messages"] if isinstance(value, list) else value for key, value in row.items()}
            file.write(dumped(turns, PAIR))
    manifest = stages.transform(path, transform_name="preference", rows="preference", max_reject_fraction=0.9)
    assert_adds_up(manifest)
    expected = [(2 * n + 1, reason) for n, (_, reason) in enumerate(FAULTY_PAIRS.values()) if reason]
    assert [(entry["row"], entry["reason"]) for entry in lines(manifest.parent / "rejects.jsonl")] == expected


def test_the_last_turn_is_trimmed_and_counted_or_rejected(stages, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(dumped(GOOD, said(USER, ANSWER, USER), said(USER, CALL, TOOL, USER), GOOD))
    manifest = stages.transform(path)
    found = assert_adds_up(manifest)
    assert found["rows_out"] == 4 and found["trimmed"] == {"rows": 2, "turns": 3}
    assert all(row["messages"][-1]["role"] == "assistant" for row in lines(manifest.parent / "rows.jsonl"))
    found = assert_adds_up(stages.transform(path, last_turn="reject", max_reject_fraction=0.5))
    assert found["dropped"] == {"last_turn_not_assistant": 2} and found["trimmed"] == {"rows": 0, "turns": 0}


# File -> its rows and the reasons of those that are rejected, or what is said of it.
with tarfile.open(fileobj=(_tar := io.BytesIO()), mode="w") as _archive:
    _archive.addfile(tarfile.TarInfo("x.jsonl"))
TAR = _tar.getvalue()
BROKEN_FILES = {
    "bom.jsonl": (b"\xef\xbb\xbf" + LINES, {}),
    "crlf.jsonl": (LINES.replace(b"\n", b"\r\n"), {}),
    "empty.jsonl": (b"", "has no rows; check its path and split"),
    "blank.jsonl": (b"\n\n \n", "has no rows"),
    "garbage.jsonl": (bytes(random.Random(0).randbytes(5000)), "nothing is left"),
    "utf16.jsonl": (LINES.decode().encode("utf-16"), "UTF-16 text; convert it to UTF-8"),
    "gzip.jsonl": (GZIP, "is gzip data; give it the suffix .gz"),
    "zstd.jsonl": (ZSTD, "is Zstandard data; give it the suffix .zst"),
    "parquet.jsonl": (PARQUET, "is a Parquet file; give it the suffix .parquet"),
    "zip.jsonl": (b"PK\x03\x04" + LINES, "is a zip archive, or a spreadsheet; unpack it"),
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "page.json": (b"<!DOCTYPE html><html></html>", "is a web page"),
    "array.jsonl": (
        json.dumps(ROWS).encode(),
        "is a JSON array, not JSON Lines, which hold one object a line; give it the suffix .json",
    ),
    "indented.jsonl": (json.dumps(ROWS, indent=1).encode(), "is a JSON array, not JSON Lines"),
    "wrapped.jsonl": (b"[" + b",\n".join(LINES.splitlines()) + b"]", "is a JSON array, not JSON Lines"),
    "objects.jsonl": (json.dumps(GOOD, indent=1).encode() * 2, "is JSON objects over several lines, not JSON Lines"),
    "lines.json": (LINES, {}),
    "joined.jsonl": (
        LINES[:700].rpartition(b"\n")[0] + b"\n\xef\xbb\xbf" + LINES[LINES.rindex(b"\n", 0, 700) + 1 :],
        {},
    ),
    "below_a_key.json": (
        json.dumps({"version": 1, "data": ROWS}).encode(),
        "where its rows are below a key, write their list as the file",
    ),
    "latin.csv": ("question,answer\nq,é\n".encode("latin-1"), "save the file as UTF-8"),
    "comment.csv": (b"# export\nquestion,answer\nq,a\n", "that the first line names the columns"),
    "not_a_number.jsonl": (LINES.replace(b'"q', b'"x": NaN, "y": "q'), "not_a_number 40; nothing is left"),
    "array.json": (json.dumps(ROWS, indent=1).encode(), {}),
    "one.json": (json.dumps(GOOD, indent=1).encode(), {}),
    "empty.json": (b" ", "line 1, column 1: is empty, expected JSON"),
    "cut.json": (json.dumps(ROWS, indent=1).encode()[:-40], "has no end: the file is cut off"),
    "quote.json": (json.dumps(ROWS).encode().replace(b'"q3"', b'"q3', 1), "line 1: "),
    "deep.json": (b"[" * 200_000, "line 1: "),
    "rest.json": (json.dumps(ROWS).encode() + b"]", "after the end of the array is"),
    "cut.jsonl.gz": (GZIP[:-30], "x.jsonl.gz: after "),
    "damaged.jsonl.gz": (GZIP[:60] + b"\xff\x00" + GZIP[62:], "x.jsonl.gz: after "),
    "text.jsonl.gz": (LINES, "is not gzip data; take the suffix .gz away"),
    "empty.jsonl.gz": (b"", "has no rows"),
    "cut.jsonl.zst": (ZSTD[:-30], "cannot be read (Truncated compressed stream)"),
    "text.jsonl.zst": (LINES, "x.jsonl.zst: after 0 rows: cannot be read"),
    "empty.jsonl.zst": (b"", "is empty, without a Zstandard frame"),
    "cut.parquet": (PARQUET[:-30], "x.parquet: after 0 rows: cannot be read"),
    "damaged.parquet": (PARQUET[:40] + b"\xff" * 90 + PARQUET[130:], "x.parquet: after "),
    "empty.parquet": (b"", "x.parquet: after 0 rows: cannot be read"),
    "no_rows.parquet": (parquet([GOOD])[:0] or parquet([], row_group_size=1), "has no rows"),
    "cut.arrow": (ARROW[:-30], "x.arrow: after "),
    "cut_stream.arrow": (STREAM[:-8], "its writer did not finish"),
    "empty.arrow": (b"", "x.arrow: after 0 rows: cannot be read"),
    "lines.arrow": (LINES, "x.arrow: after 0 rows: cannot be read"),
    "no_rows.csv": (b"question,answer\n", "has no rows"),
    "empty.csv": (b"", "has no header line"),
    "ragged.csv": (CSV + b"q\nq,a,b\n", {"wrong_number_of_cells": 2}),
    "latin1.csv": (CSV + "é,a\n".encode("latin-1"), {"undecodable_line": 1}),
    "quote.csv": (CSV + b'"q,a\n' + CSV, "check the quotes around it"),
    "names.csv": (b"question,question\nq,a\n", "two columns have one name (question, question); rename one"),
    "lines.csv": (b'"a\n\nb","a\n\nb"\nq,a\n', "line 1: two columns have one name (a b, a b); rename one"),
    "nul.csv": (CSV + b"q\x00,a\n", {"nul_character": 1}),
    "crlf_bom.csv": (b"\xef\xbb\xbf" + CSV.replace(b"\n", b"\r\n"), {}),
    "tabs.csv": (
        CSV.replace(b",", b"\t"),
        "x.csv: line 1: is one column 'question\\tanswer'; separate by ',', not '\\t'",
    ),
    "semicolons.csv": (b"question;answer\nq;a\n", "is one column 'question;answer'; separate by ',', not ';'"),
    "spreadsheet.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "is an old spreadsheet; save it as CSV"),
    "zip.csv": (b"PK\x03\x04", "is a zip archive, or a spreadsheet; unpack it, or save it as CSV"),
    "tar.jsonl": (TAR, "is a tar archive; unpack it"),
    "tar.jsonl.gz": (gzip.compress(TAR), "what is packed in it is a tar archive; unpack it"),
    "twice.jsonl.gz": (gzip.compress(GZIP), "what is packed in it is gzip data; unpack it first"),
    "twice.jsonl.zst": (zstandard.compress(GZIP), "what is packed in it is gzip data; unpack it first"),
    "error.jsonl": (b"<?xml version='1.0'?><Error/>", "is XML, as servers write errors"),
    "lower.json": (b"<!doctype html>", "is a web page"),
    "unmarked.jsonl": (LINES.decode().encode("utf-16-le"), "is UTF-16 text"),
    "feather.arrow": (b"FEA1", "is a Feather file of version 1"),
    "columns.json": (
        json.dumps({"question": ["q", "r"], "answer": ["a", "b"]}).encode(),
        "is columns of 2 values, not rows; write it with pandas",
    ),
    "numbered.json": (
        json.dumps({"question": {"0": "q", "1": "r"}, "answer": {"0": "a", "1": "b"}}).encode(),
        "is columns of 2 values, not rows",
    ),
    "good.tsv": (CSV.replace(b",", b"\t"), {}),
    "good.csv.gz": (gzip.compress(CSV), {}),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file(stages, tmp_path, name):
    content, outcome = BROKEN_FILES[name]
    path = tmp_path / f"x.{name.split('.', 1)[1]}"
    path.write_bytes(content)
    transform = "question_answer" if path.name.split(".")[1] in ("csv", "tsv") else "messages"
    if isinstance(outcome, dict):
        found = assert_adds_up(stages.transform(path, transform_name=transform, max_reject_fraction=0.1))
        assert found["dropped"] == outcome and found["rows_in"] == found["rows_out"] + sum(outcome.values())
        assert found["rows_out"] == (1 if name == "one.json" else 40)
        return
    with pytest.raises(DataError) as caught:
        stages.transform(path, transform_name=transform, max_reject_fraction=1.0)
    assert outcome in str(caught.value) and "\n" not in str(caught.value), caught.value
    assert not (stages.base / "data" / "transform" / "d" / "manifest.json").exists()


def test_columns_that_are_there_for_other_rows_are_not_there(stages, tmp_path):
    """Columns give every tool call the arguments of all; a null one was never written."""
    calls = [said(USER, {**CALL, "tool_calls": [{"name": "f", "arguments": {key: 1}}]}, TOOL, ANSWER) for key in "xy"]
    (tmp_path / "x.parquet").write_bytes(parquet(calls))
    manifest = stages.transform(tmp_path / "x.parquet")
    found = [
        row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in lines(manifest.parent / "rows.jsonl")
    ]
    assert found == [{"x": 1}, {"y": 1}]


def test_text_of_parquet_that_is_not_utf8(stages, tmp_path):
    text = pa.array([b"q", b"\xff\xfe", b"q"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": text, "answer": ["a"] * 3}), tmp_path / "x.parquet")
    manifest = stages.transform(tmp_path / "x.parquet", transform_name="question_answer", max_reject_fraction=0.4)
    assert assert_adds_up(manifest)["dropped"] == {"undecodable_line": 1}


def problem_of(path, split="train"):
    with pytest.raises(ConfigError) as caught:
        data_files(path, "data.datasets[0].path", split)
    assert str(caught.value).startswith("config error: data.datasets[0].") and "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_that_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    assert "a folder without data files" in problem_of(str(tmp_path / "folder.jsonl"))
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    assert "not a regular file" in problem_of("./loop.jsonl")
    (tmp_path / "gone.jsonl").symlink_to("nowhere.jsonl")
    assert "not a regular file" in problem_of("gone.jsonl")
    assert "not a regular file" in problem_of(".")
    os.mkfifo(tmp_path / "folder.jsonl" / "pipe.jsonl")
    assert "not a regular file" in problem_of("folder.jsonl")
    for suffix, said in {
        "txt": "unknown kind of file, expected one of .jsonl", "zip": "; unpack it", "xlsx": "; save the spreadsheet as CSV",
        "ndjson": "; give it the suffix .jsonl", "feather": "; give it the suffix .arrow",
    }.items():  # fmt: skip
        (tmp_path / f"x.{suffix}").write_text("x")
        assert said in problem_of(f"./x.{suffix}")
    assert "is an address, expected a file" in problem_of("s3://bucket/x.parquet")
    assert "is an address, expected a file" in problem_of("hf://datasets/org/name/x.parquet")
    assert "no such file" in problem_of("absent.jsonl")
    assert "no file matches" in problem_of("*.parquet")
    assert "neither a local file nor" in problem_of("a b c")
    assert "expected text or a list" in problem_of(3)
    assert "an empty list" in problem_of([]) and dataset_name({"path": [], "name": None}, "key")  # which comes first
    assert "not a local file" in problem_of(["org/name"])
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert "named twice" in problem_of(["a.jsonl", "a.jsonl"])
    assert "local files are one split" in problem_of("a.jsonl", "test")
    assert "expected a name" in problem_of("a.jsonl", "train[10:")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(LINES)
    (tmp_path / "x.jsonl").chmod(0)
    assert "you may not read it" in problem_of(str(tmp_path / "x.jsonl"))


def test_a_circle_of_links_gives_no_row_twice(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_bytes(LINES)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert len(data_files(f"{tmp_path}/**/*.jsonl", "path")) == 1


def test_folders_and_lists(tmp_path):
    for name in ("train-0.jsonl", "train-1.jsonl", "README.md"):
        (tmp_path / name).write_bytes(LINES)
    assert [f.name for f in data_files(str(tmp_path), "path")] == ["train-0.jsonl", "train-1.jsonl"]
    (tmp_path / "dataset_infos.json").write_text("{}")  # as repositories of the Hub have it
    assert len(data_files(str(tmp_path), "path")) == 2
    (tmp_path / "train-1.jsonl.gz").write_bytes(GZIP)
    assert (
        "holds train-1 in several formats (.jsonl, .jsonl.gz), and rows that are in both would count twice"
        in problem_of(str(tmp_path))
    )
    (tmp_path / "train-1.jsonl.gz").unlink()
    (tmp_path / "deeper" / "data").mkdir(parents=True)
    (tmp_path / "deeper" / "data" / "train.parquet").write_bytes(PARQUET)
    assert "/deeper/**/*.parquet looks deeper" in problem_of(str(tmp_path / "deeper"))
    (tmp_path / "test-0.jsonl").write_bytes(LINES)
    assert "several splits (test, train)" in problem_of(str(tmp_path))
    given = [str(tmp_path / "train-1.jsonl"), f"{tmp_path}/t*t-*.jsonl"]
    assert [f.name for f in data_files(given, "path")] == ["train-1.jsonl", "test-0.jsonl"]


def test_folders_of_save_to_disk(tmp_path):
    saved = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:7]))
    saved.save_to_disk(tmp_path / "dict", num_shards={"train": 3, "test": 1})
    assert len(data_files(str(tmp_path / "dict"), "path", "train[:10%]")) == 3
    (file,) = data_files(str(tmp_path / "dict"), "path", "test")
    assert file.parent.name == "test"
    assert "has no split 'tets'. Did you mean 'test'" in problem_of(str(tmp_path / "dict"), "tets")
    (tmp_path / "dict" / "train" / "data-00001-of-00003.arrow").unlink()
    assert "data-00001-of-00003.arrow is missing" in problem_of(str(tmp_path / "dict"))
    (tmp_path / "dict" / "test" / "state.json").write_text("{")
    assert "state.json: cannot be read" in problem_of(str(tmp_path / "dict"), "test")
    for state in ({}, {"_data_files": "x"}, {"_data_files": [1]}, {"_data_files": None}):
        (tmp_path / "dict" / "test" / "state.json").write_text(json.dumps(state))
        assert "state.json: does not list _data_files; copy the folder again" in problem_of(
            str(tmp_path / "dict"), "test"
        )
    (tmp_path / "dict" / "test" / "state.json").write_text('{"_data_files": [{}]}')
    assert "is missing; copy the folder again" in problem_of(str(tmp_path / "dict"), "test")
    for splits in ([], {"splits": "train"}, {"splits": [1]}):
        (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps(splits))
        assert "dataset_dict.json: does not list splits" in problem_of(str(tmp_path / "dict"))


@pytest.mark.parametrize(
    "asked, expected",
    [
        ("[:10%]", range(4)), ("[90%:]", range(36, 40)), ("[5:8]", range(5, 8)), ("[-3:]", range(37, 40)),
        ("[:-38]", range(2)), ("[25%:30%]", range(10, 12)), ("[38:99]", range(38, 40)), (None, range(40)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name, content", [("x.jsonl", LINES), ("x.parquet", PARQUET), ("x.arrow", ARROW)])
def test_slices_take_the_rows_that_datasets_takes(tmp_path, asked, expected, name, content):
    paths = []
    for part in "ab":  # two files, of which the second's rows go on counting
        (tmp_path / part).mkdir()
        paths.append(tmp_path / part / name)
        paths[-1].write_bytes(content)

    def taken(files, asked):
        return [block.before + line - 1 for block in _selected(files, asked) for line, _ in block.records()]

    assert taken(paths[:1], asked) == list(expected)
    if asked:
        (oracle,) = datasets.ReadInstruction.from_spec(f"train{asked}").to_absolute({"train": len(ROWS)})
        assert (oracle.from_, oracle.to) == (expected.start, expected.stop)
    assert taken(paths, "[39:42]") == [39, 40, 41]


FORMATS = {"jsonl": LINES, "json": json.dumps(ROWS).encode(), "jsonl.gz": GZIP, "jsonl.zst": ZSTD, "csv": CSV}
FORMATS |= {"parquet": PARQUET, "arrow": ARROW}


@cache
def application_of(name):
    config = {"transform": name, "arguments": {}, "rows": "messages", "last_turn": "trim"}
    return Application(config, registry.transform_names([])[name].file)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(sorted(FORMATS)),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 60), st.binary(max_size=12)), min_size=1, max_size=3),
)
def test_whatever_happens_to_a_file_its_counts_add_up_or_one_line_says_why(tmp_path, suffix, cuts):
    content = FORMATS[suffix]
    for place, removed, inserted in cuts:
        start = int(place * len(content))
        content = content[:start] + inserted + content[start + removed :]
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    application = application_of("question_answer" if suffix == "csv" else "messages")
    try:
        for block in read_blocks([path]):
            done = application.block(block)
            assert done.rows_in == done.rows_out + done.dropped.total() == block.size
            assert done.lines.count(b"\n") == done.examples and done.rejects.count(b"\n") == done.dropped.total()
    except DataError as error:
        assert "\n" not in str(error) and str(error).startswith(f"{path}: ")
