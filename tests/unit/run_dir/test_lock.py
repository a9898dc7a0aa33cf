"""Real processes that want the same run directory."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from post_training.run_dir import lock, owner

HOLDER = """
import os, sys, time
from pathlib import Path
from post_training.run_dir import lock
try:
    with lock.take(Path(sys.argv[1]), patience_seconds=float(sys.argv[2]), alone="POST_TRAINING_TEST_ALONE" in os.environ):
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
        assert all(f"is in use by process {owner.pid} on " in line for line in said if line != "owns")
        assert "two must not write to it together" in next(line for line in said if line != "owns")
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
    assert lock.last_owner(run) is None
    for _ in range(3):
        with lock.take(run) as held:
            assert lock.live_owner(run) == held.owner == replace(lock.this_process(), since=held.owner.since)
        assert lock.last_owner(run).released and not lock.live_owner(run)
    assert [path.name for path in run.iterdir()] == ["owner.3.json"]


def test_the_next_start_waits_for_one_that_is_stopping(run):
    first = lock.take(run)
    first.mark_stopping()
    second = start(run, patience=20, seconds=0)
    assert "waits for process" in first_line(second)
    first.release()
    assert first_line(second) == "owns"
    second.wait()


@pytest.fixture
def no_fence(monkeypatch):
    monkeypatch.setattr(lock, "FENCE_SECONDS", 0.0)


def foreign(run, age_seconds=0.0, **changes):
    """An owner on another machine."""
    run.mkdir()
    found = replace(lock.this_process(), host="elsewhere", process="other boot 1", **changes)
    path = run / "owner.7.json"
    path.write_text(json.dumps(asdict(found)))
    then = time.time() - age_seconds
    os.utime(path, (then, then))


def test_an_owner_elsewhere_lives_while_its_file_is_touched(run):
    foreign(run)
    with pytest.raises(
        lock.LockedError, match=r"by process \d+ on elsewhere, since .* \(its last sign of life is \d s old\)"
    ):
        lock.take(run)


def test_an_owner_elsewhere_without_sign_of_life_is_taken_over(run, capsys, no_fence):
    foreign(run, age_seconds=owner.STALE_SECONDS + 5)
    lock.take(run).release()
    assert "taken over from process" in capsys.readouterr().out
    assert [path.name for path in run.iterdir()] == ["owner.8.json"]


@pytest.mark.parametrize(
    ("squeue", "alive"),
    [("echo RUNNING", "its job is running"), ("echo PENDING", "its job is pending"), ("true", None),
     ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", None),
     ("echo 'Unable to contact slurm controller' >&2; exit 1", "its last sign of life")],
)  # fmt: skip
def test_an_owner_in_slurm_lives_as_long_as_its_job(run, tmp_path, monkeypatch, no_fence, squeue, alive):
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


def test_a_job_that_slurm_starts_again_takes_over_from_itself(run, monkeypatch, no_fence):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    foreign(run, slurm_job_id="4711")
    lock.take(run).release()


def test_a_requeued_job_fences_its_former_attempt_even_where_that_still_runs(run, monkeypatch):
    """A node that Slurm has given up: launcher and ranks live on, and end themselves once the new attempt owns the run."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(lock, "FENCE_SECONDS", 3.0)
    former = start(run)
    assert first_line(former) == "owns"
    code = (
        "import time\nfrom post_training.run_dir import lock\nlock.POLL_SECONDS = 0.1\nlock.end_with_owner()\n"
        "print('trains', flush=True)\ntime.sleep(60)"
    )
    environment = os.environ | {lock.VARIABLE: str(run / "owner.1.json")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    rank = subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)
    assert rank.stdout.readline() == "trains\n"
    with pytest.raises(lock.LockedError, match="its process runs"):  # the same attempt, twice
        lock.take(run)
    assert rank.poll() is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with lock.take(run):
        assert rank.poll() == 1, "the new owner waits for ranks of the former one"
        assert "another process owns this run now" in rank.stderr.read()
        assert lock.live_owner(run).slurm_restart == "1"
    former.kill()
    former.wait()


def test_a_rank_ends_when_its_launcher_has_released_the_run(run, monkeypatch):
    with lock.take(run) as held:
        assert not lock._succeeded(held.path)
    assert lock._succeeded(held.path)
    assert not lock._succeeded(run / "gone" / "owner.1.json")


def test_short_work_is_done_in_turn(run):
    """Submissions of a stage by several calls at once, also from within a Slurm job that lives on."""
    starts = [start(run, patience=20, seconds=0.2, POST_TRAINING_TEST_ALONE="1", SLURM_JOB_ID="4711") for _ in range(4)]
    assert [first_line(process) for process in starts] == ["owns"] * 4
    for process in starts:
        process.wait()
    dead = start(run, POST_TRAINING_TEST_ALONE="1", SLURM_JOB_ID="4711")
    first_line(dead)
    dead.kill()
    dead.wait()
    lock.take(run, alone=True).release()


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
    with lock.take(run), pytest.raises(lock.LockedError):
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
