"""A build lock is removed exactly when nobody builds."""

import os

from post_training.training.compile_cache import remove_stale_locks


def test_only_locks_that_nobody_holds_are_removed(tmp_path, monkeypatch):
    held, stale = tmp_path / "a" / "lock", tmp_path / "b" / "lock"
    for lock in (held, stale):
        lock.parent.mkdir()
        lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    remove_stale_locks()
    assert stale.exists()  # not a Slurm job's own disk
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    remove_stale_locks()
    assert stale.exists()  # the node's first rank does it
    monkeypatch.setenv("LOCAL_RANK", "0")
    with open(held):
        remove_stale_locks()
    assert held.exists() and not stale.exists()


def test_in_a_home_directory_a_lock_must_be_older_than_a_build(tmp_path, monkeypatch):
    for name in ("TORCH_EXTENSIONS_DIR", "SLURM_JOB_ID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    new, old = (tmp_path / ".cache" / "torch_extensions" / "py311_cpu" / name / "lock" for name in "ab")
    for lock in (new, old):
        lock.parent.mkdir(parents=True)
        lock.touch()
    os.utime(old, (1, 1))
    remove_stale_locks()
    assert new.exists() and not old.exists()
