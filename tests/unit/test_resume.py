import json
from pathlib import Path

import pytest

from post_training.training import resume


def checkpoint(directory: Path, step: int, marked: bool = True) -> Path:
    path = directory / f"checkpoint-{step}"
    (path / "global_step").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * 100)
    (path / "global_step" / "shard.pt").write_bytes(b"y" * 10)
    if marked:
        resume.mark_complete(path, step, world_size=2, tokens=step * 10)
    return path


def test_the_newest_whole_one_is_chosen_by_number_not_by_name(tmp_path):
    for step in (90, 100, 20):
        checkpoint(tmp_path, step)
    choice = resume.newest_complete(tmp_path)
    assert choice.chosen is not None
    assert choice.chosen.step == 100
    assert choice.chosen.facts == {"world_size": 2, "tokens": 1000}
    assert choice.describe() == "resuming from checkpoint-100"


def test_nothing_there(tmp_path):
    assert resume.newest_complete(tmp_path / "none").describe() == "starting at step 0"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: (path / resume.MARKER).unlink(), "no COMPLETE.json"),
        (lambda path: (path / resume.MARKER).write_text('{"fil'), "COMPLETE.json is damaged"),
        (lambda path: (path / resume.MARKER).write_text("{}"), "COMPLETE.json is damaged"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: (path / "model.safetensors").write_bytes(b"x" * 60), "model.safetensors has 60 of 100 bytes"),
        (lambda path: (path / "global_step" / "shard.pt").unlink(), "global_step/shard.pt is missing"),
    ],
)
def test_a_damaged_one_is_passed_over_and_removed(tmp_path, damage, why):
    checkpoint(tmp_path, 10)
    damaged = checkpoint(tmp_path, 20)
    damage(damaged)
    choice = resume.newest_complete(tmp_path)
    assert choice.chosen is not None
    assert choice.chosen.step == 10
    assert choice.describe() == f"resuming from checkpoint-10; not whole and passed over: checkpoint-20 ({why})"
    resume.discard_incomplete(choice)
    assert [path.name for path in resume.checkpoints(tmp_path)] == ["checkpoint-10"]


def test_the_marker_lists_every_other_file(tmp_path):
    marker = json.loads((checkpoint(tmp_path, 5) / resume.MARKER).read_text())
    assert marker["files"] == {"model.safetensors": 100, "global_step/shard.pt": 10}
    assert marker["step"] == 5


def test_rotation_keeps_the_newest_whole_ones_and_touches_no_others(tmp_path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 4, marked=False)
    (tmp_path / "checkpoint-final").mkdir()
    resume.rotate(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2", "checkpoint-3", "checkpoint-4", "checkpoint-final",
    ]  # fmt: skip
    resume.rotate(tmp_path, None)
    assert len(resume.checkpoints(tmp_path)) == 3
