"""What a stage reads from another one is what that one has written."""

import json
from pathlib import Path

import pytest

from post_training.__main__ import main
from post_training.core import inputs, manifest
from post_training.core.errors import UserError
from post_training.core.task import Task


def made(folder: Path, stage: str, **files: bytes) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    path = folder / "manifest.json"
    spec = {"stage": stage, "fingerprint": folder.name, "config": {}, "inputs": {}}
    manifest.write(path, spec, {}, 0.0)
    return path


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.fixture
def make_task(tmp_path):
    def function(stage: str, **given: Path) -> Task:
        return Task(stage, {}, {}, given, tmp_path / stage / "manifest.json")

    return function


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            flip,
            r"shard: was changed after it was written: sha256 \w{12}, not \w{12}, as .*manifest.json says; delete that",
        ),
        (lambda path: path.write_bytes(b"short"), r"shard: has 5 bytes, not 100, as "),
        (lambda path: path.unlink(), r"shard: cannot be read \(No such file or directory\), as "),
    ],
)
@pytest.mark.parametrize("stage", ["transform", "train", "mix"])
def test_a_damaged_input_is_one_line_before_anything_is_read(tmp_path, make_task, stage, damage, message):
    path = made(tmp_path / "data", "tokenize", shard=b"x" * 100, other=b"y")
    task = make_task(stage, data=path)
    assert inputs.check(task) == []
    damage(path.parent / "shard")
    with pytest.raises(UserError, match=message) as caught:
        inputs.check(task)
    assert "\n" not in str(caught.value)


def test_what_is_mapped_is_hashed_smallest_first_and_the_rest_beside_the_training(tmp_path, make_task, monkeypatch):
    path = made(tmp_path / "data", "tokenize", large=b"x" * 100, small=b"y" * 10)
    monkeypatch.setattr(inputs, "AT_ONCE_BYTES", 50)
    flip(path.parent / "large")
    (later,) = inputs.check(make_task("train", data=path))
    assert later.path == path.parent / "large"
    beside = inputs.Beside([later])
    beside.wait()
    assert beside.problem and "large: was changed after it was written" in beside.problem
    flip(path.parent / "small")
    with pytest.raises(UserError, match="small: was changed"):
        inputs.check(make_task("train", data=path))


def test_tokenize_needs_no_weights_and_export_only_the_last_checkpoint(tmp_path, make_task):
    model = made(tmp_path / "model", "download_model", **{"tokenizer.json": b"{}", "model.safetensors": b"w"})
    (model.parent / "model.safetensors").unlink()
    inputs.check(make_task("tokenize", model=model))
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read"):
        inputs.check(make_task("train", model=model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[]", r"found '\[\]', expected an object"),
        ("null", r"found 'None', expected an object"),
        ("3", r"found '3', expected an object"),
        ("{}", r"it says nothing"),
        ({"rows_out": "many"}, r"rows_out: found 'many', expected int"),
        ({"inputs": {"model": 3}}, r"inputs.model: found '3', expected an object"),
        ({"files": [{"path": 3}]}, r"files\[0\].path: found '3', expected str"),
        ({"files": "none"}, r"files: found 'none', expected a list"),
        ({"seconds": "1"}, r"seconds: found '1', expected float"),
    ],
)
def test_json_that_is_no_manifest_is_one_line(tmp_path, change, message):
    path = made(tmp_path / "data", "mix", shard=b"x")
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"manifest.json: cannot be read as a manifest \({message}\); delete it"):
        manifest.read(path)


def test_a_manifest_that_was_changed_is_not_read_for_work(tmp_path, make_task):
    path = made(tmp_path / "data", "mix", shard=b"x")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows_out": 7}))
    with pytest.raises(UserError, match="was changed after it was written; delete it to run its stage again"):
        inputs.check(make_task("train", data=path))


def test_a_job_ends_by_that_line(tmp_path, make_task, capsys):
    path = made(tmp_path / "data", "download", rows=b"x" * 100)
    task = make_task("transform", raw=path)
    task.spec = {"stage": "transform", "fingerprint": "f", "config": {}, "inputs": {}}
    flip(path.parent / "rows")
    assert main(["stage", str(task.write(tmp_path / "task.json"))]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path.parent}/rows: was changed after it was written")
