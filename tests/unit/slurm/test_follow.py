"""Decisions after a Slurm job has ended."""

import pytest
from tiny import view_of

from post_training.run_dir import attempts, checkpoints
from post_training.run_dir.attempts import Attempt
from post_training.slurm import attempt, placement
from post_training.slurm.cluster import State
from post_training.slurm.follow import Follower
from post_training.slurm.job import StageJob


@pytest.fixture
def make_job(template, tmp_path):
    def function(kind="train", **keys):
        view = view_of(template, slurm={"max_failures": 1, **keys})
        return StageJob(kind, view, tmp_path / "sft-x-1" / "manifest.json", [], placement.resources(view, kind))

    return function


def opened(job, job_id="7", restart=0, steps=0):
    job.folder.mkdir(parents=True, exist_ok=True)
    found = Attempt(job_id, restart, "node[0-1]", "node0", attempts.now(), steps)
    attempts.begin(job.folder, found)
    return found


def saved(job, step):
    checkpoint = job.directory / "checkpoints" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "rng_state.pth").write_bytes(b"x")
    checkpoints.mark_complete(checkpoint, step)


def settle(job, state, job_id="7", follower=None):
    return (follower or Follower(job, 0)).settle(job_id, State(state) if state else None)


@pytest.mark.parametrize(
    ("state", "why", "failure"),
    [
        ("NODE_FAIL", "lost: its node failed", True),
        ("OUT_OF_MEMORY", "failed: out of memory", True),
        ("TIMEOUT", "failed: the time limit came before it had saved", True),
        ("FAILED", "lost: ended without a record (killed, or its node failed)", True),
        (None, "lost: ended without a record (killed, or its node failed)", True),
        ("PREEMPTED", "preempted", False),
    ],
)
def test_an_end_that_the_job_could_not_record(make_job, state, why, failure):
    job = make_job()
    opened(job)
    assert settle(job, state).action == "again"
    (line,) = attempts.lines(job.folder)
    assert (line["why"], line["failure"], line["job_id"]) == (why, failure, "7")
    assert attempts.failures(job.folder) == failure
    assert attempts.current(job.folder) is None


def test_failures_come_to_an_end_and_progress_takes_none_away(make_job):
    job = make_job()
    follower = Follower(job, 0)
    for number, action in ((1, "again"), (2, "end")):
        attempts.end(job.folder, opened(job, str(number)), "failed: exit code 7", failure=True)
        (job.folder / f"slurm-{number}.err").write_text("ranks report\nValueError: number broke\n")
        saved(job, number)
        verdict = settle(job, "FAILED", str(number), follower)
        assert verdict.action == action
        assert attempts.failures(job.folder) == number
    assert "2 failures, slurm.max_failures is 1; not submitted again" in verdict.message
    assert "ValueError: number broke" in verdict.message
    assert "resumes from step 2" in verdict.message


@pytest.mark.parametrize("opens", [True, False])
def test_cancelled_is_an_end_and_no_failure(make_job, opens):
    job = make_job()
    if opens:
        opened(job)
    verdict = settle(job, "CANCELLED")
    assert verdict.action == "end" and "cancelled with scancel" in verdict.message
    assert [line["why"] for line in attempts.lines(job.folder)] == ["cancelled"]
    assert attempts.failures(job.folder) == 0


def test_a_job_that_a_call_cancelled_itself_is_no_failure_though_slurm_has_forgotten_it(make_job):
    job = make_job()
    opened(job)
    attempts.mark_cancelled(job.folder, "7")
    settle(job, None)
    assert [(line["why"], line["failure"]) for line in attempts.lines(job.folder)] == [("cancelled", False)]


def test_a_manifest_is_the_result_whatever_slurm_says(make_job):
    job = make_job()
    job.folder.mkdir(parents=True)
    job.output.write_text("{}")
    assert settle(job, "CANCELLED").action == settle(job, None).action == "done"


def test_success_without_the_result_is_a_failure(make_job):
    job = make_job()
    assert settle(job, "COMPLETED").action == "again"
    assert attempts.lines(job.folder)[-1]["why"] == "failed: ended without its result"


def test_a_job_that_never_began_is_a_failure(make_job):
    job = make_job()
    assert settle(job, "FAILED").action == "again"
    assert attempts.lines(job.folder)[-1]["why"] == "failed before it began: FAILED"


@pytest.mark.parametrize("further", [True, False])
def test_wall_time_is_uncounted_if_it_got_further_than_any_before(make_job, further):
    job = make_job()
    follower = Follower(job, 0)
    if further:
        saved(job, 4)
    attempts.end(job.folder, opened(job), attempts.WALL_TIME, failure=False)
    assert settle(job, "FAILED", follower=follower).action == "again"
    assert attempts.failures(job.folder) == follower.failures == (not further)


def test_stopped_again_and_again_without_a_step_is_a_failure(make_job):
    job = make_job()
    attempts.end(job.folder, opened(job), attempts.STOPPED, failure=False)
    assert settle(job, "FAILED").action == "again"
    assert attempts.failures(job.folder) == 1


def test_the_error_of_a_data_job_is_an_end_at_once(make_job):
    job = make_job("transform")
    attempts.end(job.folder, opened(job), "failed: exit code 1", failure=True)
    (job.folder / "slurm-7.err").write_text("data.jsonl: row 3: no messages\n")
    verdict = settle(job, "FAILED")
    assert verdict.action == "end" and "row 3: no messages" in verdict.message


@pytest.mark.parametrize(("live", "action"), [([], "end"), ([("8", State("RUNNING"))], "again")])
def test_an_owner_outside_of_slurm_is_named_and_one_inside_is_waited_for(make_job, monkeypatch, live, action):
    job = make_job()
    attempts.end(job.folder, opened(job), attempts.OWNED, failure=False)
    (job.folder / "slurm-7.err").write_text("is in use by process 4711 on laptop\n")
    monkeypatch.setattr("post_training.slurm.cluster.live_jobs", lambda script: live)
    verdict = settle(job, "FAILED")
    assert verdict.action == action
    assert ("process 4711 on laptop" in verdict.message) == (action == "end")


@pytest.mark.parametrize(
    ("code", "progressed", "why", "failure"),
    [
        (85, True, "wall time", False),
        (85, False, "failed: no step was done in a whole allocation", True),
        (143, True, "stopped", False),
        (-15, False, "stopped", False),
        (75, False, "owned by another job", False),
        (-9, True, "failed: exit code 137", True),
        (1, True, "failed: exit code 1", True),
        (0, True, "failed: ended without its result", True),
    ],
)
def test_why_an_attempt_ended(tmp_path, code, progressed, why, failure):
    assert attempt.verdict(code, tmp_path / "manifest.json", progressed) == (why, failure)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "post-training: attempt 0 of job 5\nerror of an earlier attempt\npost-training: attempt 1 of job 5\n"
            "srun: error: node0: task 1: Exited with exit code 1\n"
            "rank 1 on node0: Traceback (most recent call last):\n  File 'a.py', line 1\n    x()\n    ^^^\nValueError: bad row\n"
            "rank 3: Traceback (most recent call last):\nConnectionError: peer closed\n",
            ["  File 'a.py', line 1", "    x()", "ValueError: bad row"],
        ),
        (
            "[rank 1] Traceback (most recent call last):\n[rank 1]   File 'a.py'\n[rank 1] RuntimeError: broke\n[rank 0] fine\n",
            ["  File 'a.py'", "RuntimeError: broke"],
        ),
        ("RuntimeError: the disk is broken\nsrun: error: node0\n", ["RuntimeError: the disk is broken"]),
        (
            "slurmstepd-node0: error: Detected 1 oom-kill event(s)\nsrun: error: task 0: Out Of Memory\na rank was killed\n",
            ["slurmstepd-node0: error: Detected 1 oom-kill event(s)"],
        ),
        ("srun: error: node0: task 1: Killed\na rank was killed by SIGKILL\n", ["a rank was killed by SIGKILL"]),
        ("hello\n\nmodule: command not found\n", ["hello", "module: command not found"]),
    ],
)
def test_first_error_is_the_cause(tmp_path, text, expected):
    (tmp_path / "slurm-5.err").write_text(text)
    assert attempts.first_error(tmp_path, "5") == expected


def test_records_of_earlier_versions_are_read(make_job):
    job = make_job()
    attempts.end(job.folder, opened(job), "failed: exit code 7", failure=True)
    (job.folder / "attempts.jsonl").rename(job.folder / "segments.jsonl")
    attempts.end(job.folder, opened(job, restart=1), attempts.DONE, failure=False)
    assert [line["why"] for line in attempts.lines(job.folder)] == ["failed: exit code 7", "done"]
