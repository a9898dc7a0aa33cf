"""Real processes that want the same run directory."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from post_training.run_dir import lock

HOLDER = """
import sys, time
from pathlib import Path
from post_training.run_dir import lock
try:
    with lock.owned(Path(sys.argv[1]), patience_seconds=float(sys.argv[2])):
        print("owns", flush=True)
        time.sleep(float(sys.argv[3]))
except lock.LockedError as error:
    print("refused", error, flush=True)
"""


def start(directory, patience=0.0, seconds=60.0, **environment):
    command = [sys.executable, "-c", HOLDER, str(directory), str(patience), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


def first_line(process) -> str:
    return process.stdout.readline().strip()


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_of_many_simultaneous_starts_one_owns(run):
    starts = [start(run) for _ in range(6)]
    said = [first_line(process) for process in starts]
    owner = next(process for process, line in zip(starts, said, strict=True) if line == "owns")
    try:
        assert said.count("owns") == 1
        assert all(f"is being trained by process {owner.pid} on " in line for line in said if line != "owns")
        assert "two must not train together" in next(line for line in said if line != "owns")
    finally:
        for process in starts:
            process.kill()
            process.wait()


def test_of_many_that_find_a_dead_owner_one_takes_over(run):
    dead = start(run)
    first_line(dead)
    dead.kill()
    dead.wait()
    starts = [start(run) for _ in range(6)]
    said = [first_line(process) for process in starts]
    try:
        assert sum(line.endswith("which is gone") for line in said) == 1
        assert sum(line.startswith("refused") for line in said) == 5
    finally:
        for process in starts:
            process.kill()
            process.wait()


def test_a_run_that_ended_has_no_owner(run):
    assert lock.owner_of(run) is None
    for _ in range(3):
        with lock.owned(run):
            assert lock.owner_of(run) == replace(lock.this_process(), since=lock.owner_of(run).since)
        assert lock.owner_of(run).released
    assert [path.name for path in run.iterdir()] == ["owner.3.json"]


def test_the_next_start_waits_for_one_that_is_stopping(run):
    first = lock.take(run)
    first.mark_stopping()
    second = start(run, patience=20, seconds=0)
    assert "waits for process" in first_line(second)
    first.release()
    assert first_line(second) == "owns"
    second.wait()


def foreign(run, age_seconds=0.0, **changes):
    """An owner on another machine."""
    run.mkdir()
    owner = replace(lock.this_process(), host="elsewhere", process="other boot 1", **changes)
    path = run / "owner.7.json"
    path.write_text(json.dumps(asdict(owner)))
    then = time.time() - age_seconds
    os.utime(path, (then, then))


def test_an_owner_elsewhere_lives_while_its_file_is_touched(run):
    foreign(run)
    with pytest.raises(
        lock.LockedError, match=r"by process \d+ on elsewhere, since .* \(its last sign of life is \d s old\)"
    ):
        lock.take(run)


def test_an_owner_elsewhere_without_sign_of_life_is_taken_over(run, capsys):
    foreign(run, age_seconds=lock.STALE_SECONDS + 5)
    lock.take(run).release()
    assert "taken over from process" in capsys.readouterr().out
    assert [path.name for path in run.iterdir()] == ["owner.8.json"]


@pytest.mark.parametrize(
    ("squeue", "alive"),
    [("echo RUNNING", "its job is running"), ("echo PENDING", "its job is pending"), ("true", None),
     ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", None),
     ("echo 'Unable to contact slurm controller' >&2; exit 1", "its last sign of life")],
)  # fmt: skip
def test_an_owner_in_slurm_lives_as_long_as_its_job(run, tmp_path, monkeypatch, squeue, alive):
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "squeue"
    fake.write_text(f"#!/bin/sh\n{squeue}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    foreign(run, slurm_job_id="4711")
    if alive:
        with pytest.raises(lock.LockedError, match=rf"\(Slurm job 4711\), since .* \({alive}"):
            lock.take(run)
    else:
        lock.take(run).release()


def test_a_job_that_slurm_starts_again_takes_over_from_itself(run, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    foreign(run, slurm_job_id="4711")
    lock.take(run).release()


def test_a_process_that_stood_still_learns_that_it_has_lost(run, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    lost = []
    held = lock.take(run, lambda: lost.append(1))
    (run / "owner.2.json").write_text((run / "owner.1.json").read_text())
    deadline = time.monotonic() + 5
    while not lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lost == [1]
    held.release()


def test_a_file_system_without_hard_links(run, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with lock.owned(run), pytest.raises(lock.LockedError):
        lock.take(run)


def test_a_stopped_process_is_alive(run):
    """SIGSTOP, a debugger, a slow disk: its ranks may go on at any moment."""
    process = start(run)
    first_line(process)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(lock.LockedError, match="its process runs"):
        lock.take(run)
    process.kill()
    process.wait()
