"""Files of rows with faults through the data stages: `make fuzz MINUTES=10 SEED=0`.

A file is made of a good row of a transform: changed in any place, written in any format, cut and spoiled. It is planned, transformed,
tokenised, mixed and inspected as the jobs do, twice. What must hold:

- nothing but an error for the user, one line with the file (or the key) and what to do;
- every row is in an example, rejected with a listed reason, or left out by choice; blank lines are counted;
- the same files give the same bytes;
- what is trained on stands in the row, and the same row has the same number in rows, rejects and `inspect`.

A failure is shrunk and printed with its file.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
import pyarrow as pa
from data_stages import Stages, train_bpe
from fuzz_files import File, files, ids_of
from fuzz_rows import FORMATS, rows_of
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from tiny import TEMPLATE
from tokenizers import Tokenizer

from post_training.core import code, manifest
from post_training.core.errors import UserError
from post_training.core.locate import data_files
from post_training.data import registry
from post_training.data.mixing.shards import Tokenized
from post_training.data.reasons import REASONS
from post_training.inspection.collect import Steps, _Dataset

MOST = 6
SHARED_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
STRICT, CONTROL = "stops at the first", ("encode_as_text", "reject", "allow")


@st.composite
def cases(draw: Any, name: str) -> dict[str, Any]:
    """A transform with files and settings."""
    arguments, good = FORMATS[name]
    rows = draw(rows_of(_with_id(good), most=MOST))
    rows = [_numbered(row, number) for number, row in enumerate(rows)]
    made = [draw(files(rows))]
    if draw(st.integers(0, 4)) == 0:
        again = [_numbered(_with_id(good), MOST + number) for number in range(2)]
        made.append(draw(files(again)))
    return {
        "transform": name,
        "arguments": arguments,
        "rows": rows,
        "files": made,
        "strict": draw(st.integers(0, 9)) == 0,
        "last_turn": draw(st.sampled_from(["trim", "reject"])),
        "slice": draw(st.sampled_from([None] * 6 + ["[:50%]", "[1:]", "[-2:]", "[2:3]"])),
        "special_tokens_in_content": draw(st.sampled_from(CONTROL)),
        "train_on": draw(st.sampled_from(["assistant", "assistant", "last"])),
        "overlong": draw(st.sampled_from(["drop", "truncate", "split"])),
        "max_reject_fraction": draw(st.sampled_from([1.0, 1.0, 1.0, 1.0, 1.0, 0.4])),
    }


def _with_id(good: dict[str, Any]) -> dict[str, Any]:
    return {"id": "row", **good}


def _numbered(row: Any, number: int) -> Any:
    """A row whose id and texts are its own."""
    text = json.dumps(row)
    for word in ('"row"', '"q"', '"a"', '"b"', '"t"', '"o"', '"i"'):
        text = text.replace(f": {word}", f": {word[:-1]}{number}~{word[-1]}")
    return json.loads(text)


class Fuzzer:
    """Runs cases in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = train_bpe(folder / "bpe")
        self.tokenizer = Tokenizer.from_file(str(self.model / "tokenizer.json"))
        self.ran, self.refused, self.rows, self.trained = 0, 0, 0, 0

    def check(self, case: dict[str, Any]) -> None:
        """Raise AssertionError, or whatever is no error for the user, where a property does not hold."""
        results = []
        self.ran += 1
        for attempt in ("one", "two")[: 1 + (self.ran % 3 == 0)]:
            base = self.folder / attempt
            shutil.rmtree(base, ignore_errors=True)
            base.mkdir()
            sources = self.folder / "sources"
            shutil.rmtree(sources, ignore_errors=True)
            sources.mkdir()
            paths = [file.write(sources, f"file {number}") for number, file in enumerate(case["files"])]
            results.append(self._outcome(case, paths, Stages(base, self.model)))
        assert results[0] == results[-1], "the same files gave other bytes"

    def _outcome(self, case: dict[str, Any], paths: list[Path], stages: Stages) -> Any:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            try:
                return self._stages(case, paths, stages)
            except UserError as error:
                message = str(error)
        self.refused += 1
        assert "\n" not in message, f"more than one line: {message}"
        assert len(message) < 3000, f"{len(message)} characters: {message[:300]}"
        assert "Traceback" not in said.getvalue() + message
        assert any(mark in message for mark in (";", ",", STRICT)), f"no remedy: {message}"
        named = [path.name for path in paths] + [
            "rejects.jsonl",
            "rows.jsonl",
            "manifest.json",
            "config error",
            "the mix",
        ]
        assert any(name in message for name in named), f"no file: {message}"
        return message.replace(str(stages.base), "")

    def _stages(self, case: dict[str, Any], paths: list[Path], stages: Stages) -> Any:
        given = [file.given(path) for file, path in zip(case["files"], paths, strict=True)]
        found = data_files(given if len(given) > 1 else given[0], "data.datasets[0].path")
        assert found is not None
        shape = registry.transform_names([])[case["transform"]].gives[0]
        options = {key: case[key] for key in ("arguments", "strict", "last_turn", "slice", "max_reject_fraction")}
        transformed = stages.transform(*found, transform_name=case["transform"], rows=shape, **options)
        facts = json.loads(transformed.read_text())
        rows, rejects = _lines(transformed.parent / "rows.jsonl"), _lines(transformed.parent / "rejects.jsonl")
        assert facts["rows_in"] == facts["rows_out"] + sum(facts["dropped"].values()), facts
        assert facts["examples"] == len(rows)
        assert len(rejects) == sum(facts["dropped"].values()) + sum(facts["dropped_examples"].values())
        assert {entry["reason"] for entry in rejects} <= set(REASONS), rejects
        assert "transform_error" not in facts["dropped"], [e for e in rejects if e["reason"] == "transform_error"]
        options = {"template": TEMPLATE} | {
            key: case[key] for key in ("special_tokens_in_content", "max_reject_fraction")
        }
        if shape == "messages":
            options["train_on"] = case["train_on"]
        tokenized = stages.tokenize(transformed, shape=shape, **options)
        tokens = json.loads(tokenized.read_text())
        left = _lines(tokenized.parent / "rejects.jsonl")
        assert tokens["rows_in"] == len(rows) == tokens["rows_out"] + sum(tokens["dropped"].values())
        assert len(left) == sum(tokens["dropped"].values()) and {entry["reason"] for entry in left} <= set(REASONS)
        self._numbers(case, facts, rows, rejects, paths)
        kept = [
            row for row in rows if (row["row"], row.get("part", 0)) not in {(e["row"], e.get("part", 0)) for e in left}
        ]
        self._trained(case, kept, tokenized, shape)
        self._inspected(case, rows, rejects, left, transformed, tokenized, shape)
        overlong = case["overlong"] if shape == "messages" else "drop"
        mixed = stages.mix({"d": tokenized}, shape=shape, overlong=overlong, max_seq_length=256)
        mix = json.loads(mixed.read_text())
        (entry,) = mix["table"]
        lost = sum(count["rows"] for count in entry["dropped"].values())
        assert entry["rows_in"] == tokens["rows_out"] == entry["rows_available"] + lost + entry["held_out"]["rows"], (
            entry
        )
        self.rows += facts["rows_in"]
        self.trained += tokens["rows_out"]
        folders = [transformed.parent, tokenized.parent, mixed.parent]
        return [
            (file.name, file.read_bytes())
            for folder in folders
            for file in sorted(folder.glob("*.[!j]*"))
            if file.is_file()
        ]

    def _numbers(self, case: dict[str, Any], facts: Any, rows: Any, rejects: Any, paths: list[Path]) -> None:
        """Rows and rejects have the numbers that an undamaged file has."""
        ids = _ids(case["files"])
        if ids is None or case["transform"] == "message_tree":
            return
        given = [number for number, one in enumerate(ids, 1) if one is not None]
        if case["slice"] is None:
            assert facts["rows_in"] == len(given), (facts["rows_in"], given)
            assert {entry["row"] for entry in rejects} | {row["row"] for row in rows} == set(given)
        sizes = [len(file.ids) for file in case["files"]]
        for entry in rejects:
            file, line = (0, entry["row"]) if entry["row"] <= sizes[0] else (1, entry["row"] - sizes[0])
            assert (entry["file"], entry["line"]) == (str(paths[file]), line), entry
            own = ids[entry["row"] - 1]
            whole = len(entry["excerpt"]) < 200 and entry["reason"] != "nested_too_deeply"
            assert not own or not whole or own[:20] in entry["excerpt"], (own, entry)

    def _trained(self, case: dict[str, Any], rows: list[dict[str, Any]], tokenized: Path, shape: str) -> None:
        """What is trained on stands in the row, and nowhere else."""
        dataset = Tokenized.open("d", tokenized, shape, 0)
        assert len(rows) == len(dataset.numbers)
        ids = _ids(case["files"])
        texts = {own: _leaves(row) for own, row in zip(ids_of(case["rows"]), case["rows"], strict=True) if own}
        answers = {"messages": "messages", "preference": "chosen", "unpaired": "completion"}[shape]
        for index, row in enumerate(rows):
            said = [turn for turn in row[answers] if turn["role"] == "assistant" and "train" not in turn]
            for turn in said:
                # An id is `row3~`, and so end the texts of that row.
                own = texts.get(ids[row["row"] - 1] or "") if ids else None
                if own is not None and case["transform"] != "message_tree":
                    lines = (line.strip() for line in turn["content"].split("\n"))
                    assert all(line in own for line in lines), (turn, own)
            plain = all(set(turn) <= {"role", "content", "train"} for turn in row[answers])
            if not plain or case["special_tokens_in_content"] == "allow" or shape != "messages":
                continue
            (tokens,) = dataset.values(dataset.documents[index : index + 1], "tokens")
            got = self.tokenizer.decode(tokens[tokens >= 0].tolist(), skip_special_tokens=False)
            wanted = [turn["content"] + "<|im_end|>" for turn in said]
            assert got == "".join(wanted[-1:] if case["train_on"] == "last" else wanted), (got, wanted)

    def _inspected(
        self, case: dict[str, Any], rows: Any, rejects: Any, left: Any, transformed: Path, tokenized: Path, shape: str
    ) -> None:
        """`inspect` shows each row under its number, with its fate."""
        raw = Path(json.loads(transformed.read_text())["inputs"]["raw"]["path"])
        stage = SimpleNamespace(
            config={"chat_template": TEMPLATE, "rows": shape},
            inputs={"model": SimpleNamespace(manifest="models/tiny/manifest.json")},
        )
        mixed = SimpleNamespace(config={"max_seq_length": 256, "overlong": case["overlong"]}, inputs={"d": stage})
        plan = SimpleNamespace(base=tokenized.parents[3])
        steps = Steps(raw, transformed, None, tokenized, case["slice"] is not None)
        dataset = _Dataset(plan, mixed, "d", steps, Tokenized.open("d", tokenized, shape, 0))
        last = max(entry["row"] for entry in [*rows, *rejects])
        shown = dataset.examples(set(range(1, last + 1)))
        refused = {entry["row"]: entry["reason"] for entry in rejects}
        made = {(row["row"], row.get("part", 0)): row for row in rows}
        lost = {(entry["row"], entry.get("part", 0)) for entry in left}
        ids = _ids(case["files"])
        for example in shown:
            place = (example.row, example.part)
            if ids and ids[example.row - 1] and isinstance(example.raw, dict):
                assert str(example.raw.get("id", "")) == ids[example.row - 1], (example, ids)
            if example.transformed is not None:
                assert example.transformed == {k: v for k, v in made.pop(place).items() if k not in ("row", "part")}
                assert bool(example.sequences) == (place not in lost)
                assert (place not in lost) or example.fate
            elif example.row in refused:
                assert refused[example.row] in example.fate, (example, refused)
            else:
                assert example.fate
        assert not made, f"not shown: {made}"


def _leaves(value: Any) -> str:
    """All text of a row, a line each: keys, values, and what is written as JSON in them."""
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return f"{value}\n{_leaves(inner)}" if isinstance(inner, str | list | dict) else value
    if isinstance(value, dict):
        return "\n".join([json.dumps(value), *(f"{key}\n{_leaves(item)}" for key, item in value.items())])
    return (
        "\n".join([json.dumps(value), *map(_leaves, value)])
        if isinstance(value, list)
        else f"{value}\n{json.dumps(value)}"
    )


def _ids(made: list[File]) -> list[str | None] | None:
    """Ids of all files in order; None where a fault hides them."""
    return [one for file in made for one in file.ids] if all(file.ids for file in made) else None


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.is_file() else []


def described(case: dict[str, Any]) -> str:
    """A case as one reads it."""
    parts = [f"{key}: {value!r}"[:600] for key, value in case.items() if key not in ("files", "rows")]
    parts += [f"file: {file!r}" for file in case["files"]]
    return "\n  ".join(parts)


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Without what takes most of the time of a small job and has nothing to do with rows: commit, versions, fsync."""
    versions = manifest.versions()
    with (
        mock.patch.object(code, "state", lambda folder: None),
        mock.patch.object(manifest, "versions", lambda: versions),
        mock.patch.object(os, "fsync", lambda descriptor: None),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def fuzz(fuzzer: Fuzzer, name: str, number: int, examples: int, shrink: bool = True) -> None:
    """Some cases of one transform. Raises what the first that fails raises, shrunk, with the case in its notes."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False, print_blob=False, verbosity=Verbosity.quiet,
    )  # fmt: skip
    @given(case=cases(name))
    def run(case: dict[str, Any]) -> None:
        try:
            fuzzer.check(case)
        except BaseException as error:
            error.add_note(described(case))
            raise

    with hurried():
        run()


def main() -> int:
    """Until the time is up; returns 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transform", choices=FORMATS, action="append")
    parser.add_argument("--no-shrink", action="store_true")
    options = parser.parse_args()
    until, number, failures = time.monotonic() + options.minutes * 60, options.seed, 0
    kinds: set[str] = set()
    names = options.transform or list(FORMATS)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        fuzzer = Fuzzer(Path(folder))
        while time.monotonic() < until:
            name = names[number % len(names)]
            try:
                fuzz(fuzzer, name, number, 40, not options.no_shrink)
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} {Path(last.filename).name}:{last.lineno} {str(error)[:60]}"
                failures += 1
                if kind not in kinds:
                    kinds.add(kind)
                    frames = [
                        frame
                        for frame in traceback.extract_tb(error.__traceback__)
                        if "hypothesis" not in frame.filename
                    ]
                    error.__notes__ = [
                        note for note in getattr(error, "__notes__", ()) if note.startswith("transform")
                    ][-1:]
                    print(
                        "".join(traceback.format_list(frames[-6:]) + traceback.format_exception_only(error))[:5000],
                        flush=True,
                    )
                    print(f"--- {kind}: transform {name}, seed {number}\n", flush=True)
            number += 1
        print(
            f"{fuzzer.ran:,} files, {fuzzer.refused // 2:,} of them refused in a line; {fuzzer.rows // 2:,} rows in, "
            f"{fuzzer.trained // 2:,} examples tokenised; {len(kinds)} kinds of failures, {failures} in all"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
