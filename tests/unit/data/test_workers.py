"""Shards: the same bytes from any number of workers, resumable, and a fast engine that is used where it is right."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tokenizers_of import many

from post_training.core.errors import DataError
from post_training.data import tokenize
from post_training.data.tokens import engine, shards
from post_training.data.tokens.engine import Fastokens, HuggingFace, hard_cases
from post_training.data.tokens.tokenizer_file import TokenizerFile

fastokens = pytest.importorskip("fastokens")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "LEAST_BYTES", 20_000)


@pytest.fixture
def transformed(stages, tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in many(550)))
    return stages.transform(source)


def test_the_ranges_are_the_lines_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LEAST_BYTES", 10)
    path = tmp_path / "rows.jsonl"
    for lines in ([b"x"], [b"a" * 9, b"b" * 9, b"c" * 9], [b"a", b"b" * 500, b"c", b"d" * 30], [b"e" * 10] * 50):
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        whole = path.read_bytes()
        parts = [whole[start:end] for start, end in shards.byte_ranges(path)]
        assert b"".join(parts) == whole and all(part.endswith(b"\n") for part in parts)
    assert len(parts) > 10


def test_a_finished_shard_is_kept_and_an_unfinished_or_foreign_one_made_again(
    stages, transformed, small_shards, read, monkeypatch
):
    manifest = stages.tokenize(transformed)
    first = read(manifest)["files"]
    folder = manifest.parent
    kept, cut, other = (folder / entry["path"] for entry in first[:3])
    stamp = kept.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:-9])
    other.write_bytes(kept.read_bytes())
    (folder / "tokens-00003.arrow").unlink()
    manifest.unlink()
    assert read(stages.tokenize(transformed))["files"] == first
    assert kept.stat().st_mtime_ns == stamp != cut.stat().st_mtime_ns
    # Other settings: nothing of it is taken over.
    found = read(stages.tokenize(transformed, train_on="all"))["files"]
    assert all(a["sha256"] != b["sha256"] for a, b in zip(first, found, strict=True))


def test_a_killed_job_goes_on_with_the_shards_that_are_whole(stages, transformed, small_shards, read, monkeypatch):
    whole = read(stages.tokenize(transformed, name="whole"))
    made = []

    def killed(tokenization, job, number, start, end, real=shards.make_shard):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(number)
        return real(tokenization, job, number, start, end)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "make_shard", killed)
        stages.tokenize(transformed, name="whole2")
    folder = stages.base / "data" / "tokenize" / "whole2"
    assert len(list(folder.glob("*.arrow"))) == 2 and not (folder / "manifest.json").exists()
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
    again = read(stages.tokenize(transformed, name="whole2"))
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow") if path.name in stamps} == stamps
    assert (again["tokens"], again["rows_out"], again["lengths"]) == (
        whole["tokens"],
        whole["rows_out"],
        whole["lengths"],
    )
    assert [entry["sha256"] for entry in again["files"]] == [entry["sha256"] for entry in whole["files"]]


def test_a_dead_worker_is_an_error_and_not_a_hang(stages, transformed, small_shards, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(shards.Worker, "shard", _die)
    with pytest.raises(DataError, match=r"rows\.jsonl: a worker process died.*data\.num_proc"):
        stages.tokenize(transformed, num_proc=2)


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_fast_engine_gives_the_same_files(stages, transformed, small_shards, read, monkeypatch):
    plain = read(stages.tokenize(transformed, name="x"))
    for path in (stages.base / "data" / "tokenize" / "x").iterdir():
        path.unlink()
    monkeypatch.setattr(tokenize, "FAST_ABOVE_BYTES", 0)
    monkeypatch.setattr(tokenize, "FAST_ABOVE_SHARE", 0)
    fast = read(stages.tokenize(transformed, name="x"))
    assert fast["engine"] == engine.fastokens_name() and plain["engine"].startswith("tokenizers ")
    assert fast["files"] == plain["files"]


@pytest.mark.parametrize("fault", ["hard cases", "the job's own text", "error"])
def test_an_engine_that_differs_is_not_used(stages, transformed, small_shards, read, monkeypatch, capsys, fault):
    plain = read(stages.tokenize(transformed, name="x"))
    (stages.base / "data" / "tokenize" / "x" / "tokens-00000.arrow").unlink()
    real = Fastokens.encode

    def encode(self, texts):
        ids, offsets = real(self, texts)
        hard = len(texts) > 1000
        if fault == "error" and not hard:
            raise engine.EngineFails("it fails (PanicException: no)")
        if hard == (fault == "hard cases"):
            ids = ids.copy()
            ids[0] += 1
        return ids, offsets

    monkeypatch.setattr(Fastokens, "encode", encode)
    monkeypatch.setattr(tokenize, "FAST_ABOVE_BYTES", 0)
    monkeypatch.setattr(tokenize, "FAST_ABOVE_SHARE", 0)
    found = read(stages.tokenize(transformed, name="x"))
    assert found["files"] == plain["files"] and found["engine"] == plain["engine"]
    said = [line for line in capsys.readouterr().out.splitlines() if "is not used here" in line]
    assert len(said) == 1 and said[0].startswith("tokenize: fastokens 0.3.5 is not used here: it ")


def test_hard_cases_find_a_wrong_engine(bpe_folder):
    """One rule of the pre-tokenizer changed is seen; the engine as it is passes."""
    file = TokenizerFile.read(bpe_folder)
    cases = hard_cases(list(file.control))
    expected = HuggingFace(file.load()).encode(cases)
    for found, wanted in zip(Fastokens(file).encode(cases), expected, strict=True):
        assert np.array_equal(found, wanted)
    from tokenizers import pre_tokenizers

    other = file.load()
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), other.pre_tokenizer])
    assert not np.array_equal(HuggingFace(other).encode(cases)[0], expected[0])


def test_nothing_heavy_is_imported(tmp_path):
    """A worker starts in a fraction of a second."""
    code = "import sys, post_training.data.tokenize, post_training.data.tokens.preload; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"torch", "transformers", "datasets", "trl", "pandas", "omegaconf", "accelerate"}
