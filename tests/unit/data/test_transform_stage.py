"""The stage around a transform: every row is written or counted, and the limits hold."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from post_training.core.errors import DataError
from post_training.data import transform
from post_training.data.reading import readers

GOOD = {"question": "1+1?", "answer": "2"}


def source(folder, rows):
    """Rows, or bytes that are not rows, as JSON Lines."""
    path = folder / "source.jsonl"
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def ask(stages, *paths, **kwargs):
    return stages.transform(*paths, transform_name="question_answer", **kwargs)


def test_rows_keep_their_numbers_and_rejects_their_places(stages, tmp_path, read):
    path = source(tmp_path, [GOOD, b"{oops", {"question": "x"}, b"", {**GOOD, "answer": 2}, [1], GOOD])
    manifest = ask(stages, path, max_reject_fraction=0.9)
    found = read(manifest)
    assert found["rows_in"] == 6 and found["rows_out"] == 2
    assert found["dropped"] == {"undecodable_line": 1, "missing_column": 1, "wrong_type": 1, "not_an_object": 1}
    assert [row["row"] for row in lines(manifest.parent / "rows.jsonl")] == [1, 7]
    rejects = lines(manifest.parent / "rejects.jsonl")
    assert [(r["row"], r["reason"]) for r in rejects] == [
        (2, "undecodable_line"), (3, "missing_column"), (5, "wrong_type"), (6, "not_an_object"),
    ]  # fmt: skip
    assert all(r["file"] == str(path) and len(r["excerpt"]) <= 200 for r in rejects)
    assert rejects[0]["excerpt"] == "{oops" and "'answer'" in rejects[1]["detail"]
    assert [entry["path"] for entry in found["files"]] == ["rows.jsonl", "rejects.jsonl"]
    assert not list(manifest.parent.glob(".*"))


def test_row_numbers_run_on_over_several_files(stages, tmp_path):
    files = []
    for name in "ab":
        (tmp_path / name).mkdir()
        files.append(source(tmp_path / name, [GOOD, GOOD]))
    manifest = ask(stages, *files)
    assert [row["row"] for row in lines(manifest.parent / "rows.jsonl")] == [1, 2, 3, 4]


def test_too_many_rejects_leave_no_manifest_but_the_reasons(stages, tmp_path):
    path = source(tmp_path, [GOOD] * 8 + [{"question": "x"}, {"question": "x", "answer": ""}])
    with pytest.raises(DataError) as caught:
        ask(stages, path, max_reject_fraction=0.19)
    text = str(caught.value)
    assert "2 of 10 rows rejected (20.0%): missing_column 1, empty_content 1" in text and "\n" not in text
    rejects = stages.base / "data" / "transform" / "d" / "rejects.jsonl"
    assert text.startswith(f"{rejects}: ") and len(lines(rejects)) == 2
    assert not (rejects.parent / "manifest.json").exists() and not (rejects.parent / "rows.jsonl").exists()
    assert ask(stages, path, max_reject_fraction=0.2).exists()


def test_strict_stops_at_the_first(stages, tmp_path):
    path = source(tmp_path, [GOOD, {"question": "x"}, b"{oops"])
    with pytest.raises(DataError, match=r"source\.jsonl: row 2: missing_column: .*data\.strict"):
        ask(stages, path, strict=True, max_reject_fraction=1.0)


def test_no_rows_at_all(stages, tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        ask(stages, source(tmp_path, [b"", b"  "]))


def test_nothing_left(stages, tmp_path):
    with pytest.raises(DataError, match=r"1 of 1 rows rejected .*nothing is left"):
        ask(stages, source(tmp_path, [b"{oops"]), max_reject_fraction=1.0)
    # The transform fits and its columns do not: the row says which there are, and the remedy is to name them.
    with pytest.raises(DataError) as caught:
        ask(stages, source(tmp_path, [{"frage": "x", "antwort": "y"}] * 3), max_reject_fraction=1.0)
    text = str(caught.value)
    assert "missing_column 3; nothing is left; the first: " in text and "row 1: missing_column: " in text
    assert "(the row has frage, antwort)" in text and "name the columns as the transform's arguments" in text


def test_whatever_a_users_transform_does_is_a_reason(stages, tmp_path, read):
    module = tmp_path / "mine.py"
    module.write_text(
        "from post_training.data.transforms import register_transform\n"
        "def turns(answer, **more):\n"
        "    return [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': answer, **more}]\n"
        "@register_transform('mine')\n"
        "def mine(row):\n"
        "    do = row['do']\n"
        "    if do == 'good': return {'messages': turns('a')}\n"
        "    if do == 'code': raise ValueError('no_votes: 0 votes')\n"
        "    if do == 'words': raise ValueError('that is all: nothing')\n"
        "    if do == 'attribute': return None.strip()\n"
        "    if do == 'zero': return 1 / 0\n"
        "    if do == 'deep': return mine(row)\n"
        "    if do == 'surrogate': return {'messages': turns('a', name='\\ud83d')}\n"
        "    if do == 'big': return {'messages': turns('a', n=1 << 70)}\n"
        "    if do == 'two': return [{'messages': turns('a')}, {'messages': turns('')}, {'messages': turns('b')}]\n"
        "    if do == 'bytes': return {'messages': turns('a', n=b'x')}\n"
    )
    asked = ["good", "code", "words", "attribute", "zero", "deep", "surrogate", "big", "bytes", "none", "two"]
    path = source(tmp_path, [{"do": do} for do in asked] + [{}])
    manifest = stages.transform(path, transform_name="mine", source=module, max_reject_fraction=1.0)
    assert [(r["row"], r["reason"]) for r in lines(manifest.parent / "rejects.jsonl")] == [
        (2, "no_votes"), (3, "unusable_row"), (4, "wrong_type"), (5, "transform_error"), (6, "nested_too_deeply"),
        (7, "undecodable_text"), (8, "not_json"), (9, "not_json"), (10, "not_an_object"), (11, "empty_content"), (12, "missing_column"),
    ]  # fmt: skip
    found = read(manifest)
    assert (found["rows_in"], found["rows_out"], found["examples"]) == (12, 2, 3)
    assert found["dropped_examples"] == {"empty_content": 1} and sum(found["dropped"].values()) == 10
    places = [(row["row"], row.get("part")) for row in lines(manifest.parent / "rows.jsonl")]
    assert places == [(1, None), (11, 0), (11, 2)]


def test_evaluation_rows_are_of_the_shape_that_their_keys_say(stages, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    manifest = stages.transform(source(tmp_path, rows), rows="any")
    assert set(lines(manifest.parent / "rows.jsonl")[0]) == {"row", "messages"}
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    manifest = stages.transform(source(tmp_path, pairs), transform_name="preference", rows="any")
    assert set(lines(manifest.parent / "rows.jsonl")[0]) == {"row", "prompt", "chosen", "rejected"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=6,
)
almost_rows = st.fixed_dictionaries(
    {}, optional={"question": json_values | st.just("q"), "answer": json_values | st.just("a")}
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(almost_rows | json_values | st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")), max_size=8))
def test_in_equals_out_plus_dropped(stages, tmp_path, read, rows):
    path = source(tmp_path, [GOOD, *rows])
    blank = sum(isinstance(row, bytes) and not row.strip(b" \t\r") for row in rows)
    found = read(manifest := ask(stages, path, max_reject_fraction=1.0))
    assert found["rows_in"] == 1 + len(rows) - blank
    assert found["rows_in"] == found["rows_out"] + sum(found["dropped"].values())
    assert found["rows_out"] == len(lines(manifest.parent / "rows.jsonl"))
    assert sum(found["dropped"].values()) == len(lines(manifest.parent / "rejects.jsonl"))


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_any_number_of_processes_writes_the_same_bytes(stages, tmp_path, read, monkeypatch, suffix):
    monkeypatch.setattr(transform, "_WORTH_A_PROCESS_BYTES", 0)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 700)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    rows = [{"question": f"{n}?", "answer": str(n) if n % 7 else ""} for n in range(200)]
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "csv":
        path.write_text("question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in rows))
    else:
        text = json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if suffix == "jsonl.gz" else text.encode())
    written = []
    for processes in (1, 2):
        manifest = ask(stages, path, max_reject_fraction=0.5, num_proc=processes, slice="[3:190]")
        assert read(manifest)["rows_in"] == 187
        written.append([(manifest.parent / f"{name}.jsonl").read_bytes() for name in ("rows", "rejects")])
    assert written[0] == written[1] and written[0][0].count(b"\n") == 187 - 27
