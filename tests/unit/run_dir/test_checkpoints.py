import json
import os
from pathlib import Path

import pytest

from post_training.core.errors import UserError
from post_training.run_dir import checkpoints


def checkpoint(directory: Path, step: int, marked: bool = True) -> Path:
    path = directory / f"checkpoint-{step}"
    (path / "global_step").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * 100)
    (path / "global_step" / "shard.pt").write_bytes(b"y" * 10)
    for rank in range(2):
        (path / f"rng_state_{rank}.pth").write_bytes(b"z")
    if marked:
        checkpoints.mark_complete(path, step, world_size=2, tokens=step * 10)
    return path


def test_the_newest_complete_one_is_chosen_by_number_not_by_name(tmp_path):
    for step in (90, 100, 20):
        checkpoint(tmp_path, step)
    choice = checkpoints.newest_complete(tmp_path)
    assert choice.chosen is not None
    assert choice.chosen.step == 100
    assert choice.chosen.facts == {"world_size": 2, "tokens": 1000}
    assert choice.describe() == "resuming from checkpoint-100"


def test_nothing_there(tmp_path):
    assert checkpoints.newest_complete(tmp_path / "none").describe() == "starting at step 0"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: (path / checkpoints.MARKER).unlink(), "no COMPLETE.json"),
        (lambda path: (path / checkpoints.MARKER).write_text('{"fil'), "COMPLETE.json is damaged"),
        (lambda path: (path / checkpoints.MARKER).write_text("{}"), "COMPLETE.json is damaged"),
        (lambda path: (path / checkpoints.MARKER).write_text("[]"), "COMPLETE.json is damaged"),
        (lambda path: (path / checkpoints.MARKER).write_text('{"step": 20, "files": {}}'), "COMPLETE.json is damaged"),
        (lambda path: changed(path, '"tokens": 200', '"tokens": 201'), "COMPLETE.json is damaged"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: (path / "model.safetensors").write_bytes(b"x" * 60), "model.safetensors has 60 of 100 bytes"),
        (lambda path: (path / "global_step" / "shard.pt").unlink(), "global_step/shard.pt is missing"),
    ],
)
def test_a_damaged_one_is_passed_over_and_out_of_the_way(tmp_path, damage, why):
    checkpoint(tmp_path, 10)
    damaged = checkpoint(tmp_path, 20)
    damage(damaged)
    choice = checkpoints.newest_complete(tmp_path)
    assert choice.chosen is not None
    assert choice.chosen.step == 10
    assert choice.describe() == f"resuming from checkpoint-10; incomplete and passed over: checkpoint-20 ({why})"
    checkpoints.discard_incomplete(choice)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-10"]
    # What was complete once is kept under another name; what never was is gone.
    aside = [path for path in tmp_path.iterdir() if path.name.startswith("set-aside-checkpoint-20-")]
    assert len(aside) == (0 if why == "no COMPLETE.json" else 1)


def changed(path: Path, before: str, after: str) -> None:
    marker = path / checkpoints.MARKER
    marker.write_text(marker.read_text().replace(before, after))


@pytest.mark.parametrize("name", ["model.safetensors", "global_step/shard.pt", "rng_state_1.pth"])
def test_a_flipped_bit_is_seen_by_the_rank_that_wrote_the_file_and_the_one_before_is_taken(tmp_path, name, capsys):
    checkpoint(tmp_path, 10)
    damaged = checkpoint(tmp_path, 20)
    content = bytearray((damaged / name).read_bytes())
    content[-1] ^= 1
    (damaged / name).write_bytes(content)
    assert checkpoints.newest_complete(tmp_path).chosen.step == 20  # which compares sizes alone
    found = [checkpoints.why_damaged(damaged, rank, 2) for rank in range(2)]
    assert [why is None for why in found] == ([True, False] if "_1" in name else [False, True])
    assert checkpoints.undamaged(tmp_path).chosen.step == 10
    said = capsys.readouterr().out
    assert said.startswith(f"checkpoint-20: {name} is not as it was saved: XXH3 ") and "is kept as" in said
    (aside,) = tmp_path.glob("set-aside-checkpoint-20-*")
    assert (aside / name).read_bytes() == content


def test_a_marker_of_an_earlier_version_has_no_checksums(tmp_path):
    old = checkpoint(tmp_path, 10)
    marker = json.loads((old / checkpoints.MARKER).read_text())
    (old / checkpoints.MARKER).write_text(json.dumps({key: marker[key] for key in ("step", "files", "world_size")}))
    assert checkpoints.undamaged(tmp_path).chosen.facts == {"world_size": 2}


def test_what_cannot_be_read_for_a_moment_is_read_in_the_end(tmp_path, monkeypatch):
    checkpoint(tmp_path, 10)
    failing(monkeypatch, times=2)
    assert checkpoints.newest_complete(tmp_path).describe() == "resuming from checkpoint-10"


def test_what_cannot_be_read_is_never_deleted(tmp_path, monkeypatch):
    """A disk that fails to read is no proof that nothing was there."""
    checkpoint(tmp_path, 10)
    with monkeypatch.context() as patch:
        failing(patch, times=100)
        choice = checkpoints.newest_complete(tmp_path)
        assert choice.chosen is None
        assert "checkpoint-10 (COMPLETE.json cannot be read: Input/output error)" in choice.describe()
        patch.setattr(os, "listdir", broken)
        checkpoints.discard_incomplete(choice)
    (aside,) = tmp_path.iterdir()
    assert checkpoints.why_incomplete(aside) is None


def broken(*_, **__):
    raise OSError(5, "Input/output error")


def failing(monkeypatch, times):
    read, left = Path.read_text, [times]

    def read_text(self, **kwargs):
        if self.name == checkpoints.MARKER and left[0]:
            left[0] -= 1
            broken()
        return read(self, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(checkpoints.time, "sleep", lambda _: None)


def test_a_deletion_that_was_cut_off_is_finished_at_the_next_start(tmp_path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-1" / checkpoints.MARKER).unlink()
    choice = checkpoints.newest_complete(tmp_path)
    assert choice.describe() == "resuming from checkpoint-3"
    checkpoints.discard_incomplete(choice)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2"]


def test_a_checkpoint_without_a_ranks_file_is_not_marked(tmp_path):
    """As when every node writes to a disk of its own."""
    path = checkpoint(tmp_path, 1, marked=False)
    (path / "rng_state_1.pth").unlink()
    with pytest.raises(UserError, match=r"has no rng_state_1.pth .* all nodes share"):
        checkpoints.mark_complete(path, 1, world_size=2)
    assert checkpoints.why_incomplete(path) == "no COMPLETE.json"


def test_the_marker_lists_every_other_file(tmp_path):
    marker = json.loads((checkpoint(tmp_path, 5) / checkpoints.MARKER).read_text())
    assert marker["files"] == {
        "model.safetensors": 100, "global_step/shard.pt": 10, "rng_state_0.pth": 1, "rng_state_1.pth": 1,
    }  # fmt: skip
    assert marker["step"] == 5 and marker["xxh3"].keys() == marker["files"].keys()


def test_rotation_keeps_the_newest_complete_ones_and_touches_no_others(tmp_path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 4, marked=False)
    (tmp_path / "checkpoint-final").mkdir()
    checkpoints.rotate(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2", "checkpoint-3", "checkpoint-4", "checkpoint-final",
    ]  # fmt: skip
    checkpoints.rotate(tmp_path, None)
    assert len(checkpoints.checkpoints(tmp_path)) == 3
