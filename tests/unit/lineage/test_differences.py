"""`diff`: one thing is changed in a copy of a run, and it alone is told."""

import json
import shutil
from pathlib import Path

import pytest

from post_training.__main__ import main
from post_training.config import load_file
from post_training.lineage import collect
from post_training.lineage.compare import differences


@pytest.fixture
def two(exported, model_manifest, sft_rows, tmp_path) -> tuple[Path, Path]:
    """Two copies of a run and of all that it was made from."""
    for name in "ab":
        for source in (model_manifest.parent, sft_rows.parent, exported.parents[1]):
            shutil.copytree(source, tmp_path / name / source.name)
    run = exported.parents[1].name
    return tmp_path / "a" / run, tmp_path / "b" / run


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def told(two) -> dict[str, list]:
    """The kinds in which the two differ."""
    return {kind: rows for kind, rows in differences(*map(collect, two)).items() if rows}


def test_equal_runs(two, capsys):
    assert told(two) == {}
    assert main(["diff", *map(str, two)]) == 0
    assert capsys.readouterr().out == "no difference\n"


@pytest.mark.parametrize(
    "section,key,value,kind",
    [
        ("training", "learning_rate", 0.5, "keys"),
        ("logging", "logging_steps", 7, "keys that decide nothing"),
        ("checkpointing", "save_steps", 7, "keys that decide nothing"),
    ],
)
def test_a_key(two, section, key, value, kind):
    tree = load_file(two[1] / "config.yaml")
    before, tree["sft"][section][key] = tree["sft"][section][key], value
    (two[1] / "config.yaml").write_text(json.dumps(tree))
    assert told(two) == {kind: [{"what": f"sft.{section}.{key}", "a": before, "b": value}]}


def test_a_key_of_runs_without_a_configuration(two):
    for run in two:
        (run / "config.yaml").unlink()
        (run / "model" / "config.yaml").unlink()
    train = json.loads((two[1] / "manifest.json").read_text())
    train["config"]["training"]["seed"] = 7
    edit(two[1] / "manifest.json", config=train["config"])
    assert told(two) == {"keys": [{"what": "train (train): training.seed", "a": 42, "b": 7}]}


def test_the_content_of_a_data_file(two, sft_rows):
    """The rows are others, though nothing that was configured is."""
    path = two[1].parent / sft_rows.parent.name / "manifest.json"
    edit(path, files=[{"path": "epoch-00000.npy", "bytes": 1, "sha256": "0" * 64}])
    (row,) = told(two).pop("inputs")
    assert row["what"] == "data" and row["a"].startswith("mix with content ") and row["a"] != row["b"]


def test_code_and_libraries(two):
    manifest = two[1] / "manifest.json"
    versions = json.loads(manifest.read_text())["versions"]
    git = {"commit": "f" * 40, "dirty": True, "diff": {"path": "code.diff", "bytes": 1, "sha256": "d" * 64}}
    edit(manifest, git=git, code_sha256="c" * 64, versions=versions | {"torch": "0.0.1"})
    rows = {row["what"]: row["b"] for row in told(two).pop("versions")}
    assert "0.0.1" in rows["torch"] and "f" * 40 in rows["commit"] and "c" * 12 in rows["code"]
    assert "d" * 12 in rows["changes in the code"] and set(rows) == {"torch", "commit", "code", "changes in the code"}


def test_results_and_evaluations(two):
    edit(two[1] / "manifest.json", loss_last=9.5)
    export = json.loads((two[0] / "model" / "manifest.json").read_text())["fingerprint"]
    for run, accuracy in zip(two, (0.5, 0.75), strict=True):
        folder = run.parent / "evaluations" / "sft-1"
        folder.mkdir(parents=True)
        facts = {"stage": "evaluate", "fingerprint": "e", "results": {"held": {"accuracy": accuracy}}}
        (folder / "manifest.json").write_text(json.dumps(facts | {"inputs": {"model": {"fingerprint": export}}}))
    found = told(two)
    assert set(found) == {"results"}
    rows = {row["what"]: (row["a"], row["b"]) for row in found["results"]}
    assert rows["train: loss_last"][1] == 9.5 and rows["evaluation: held.accuracy"] == (0.5, 0.75) and len(rows) == 2


def test_how_long_it_took_is_no_result(two):
    metrics = json.loads((two[0] / "manifest.json").read_text())["metrics"]
    assert metrics["tokens_per_second"] > 0
    changed = metrics | {"tokens_per_second": 1.0, "seconds": 1.0}
    edit(two[1] / "manifest.json", metrics=changed, seconds=1.0, training_seconds=1.0, host="h", finished="now")
    assert set(told(two)) == {"costs"}


def test_the_command_as_tables_and_as_json(two, capsys):
    edit(two[1] / "manifest.json", loss_last=9.5)
    assert main(["diff", *map(str, two)]) == 0
    shown = capsys.readouterr().out
    assert "results" in shown and "loss_last" in shown and "9.5" in shown and "versions" not in shown
    assert main(["diff", *map(str, two), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["b"] == 9.5
