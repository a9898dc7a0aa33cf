"""No sequence of endings, deletions and outages submits a stage more often than the stated limit; none submits it twice at once."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import view_of

from post_training.core.errors import UserError
from post_training.run_dir import attempts, checkpoints
from post_training.slurm import cluster, placement
from post_training.slurm.cluster import State
from post_training.slurm.follow import SUBMISSIONS, Follower
from post_training.slurm.job import StageJob
from post_training.slurm.patience import Patience

AWAY = "Unable to contact slurm controller (connect failure)"
STATES = ["FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "COMPLETED", None]
WHYS = [attempts.WALL_TIME, attempts.STOPPED, attempts.DONE, "failed: exit code 7", "killed", "never began"]
DELETED = ["nothing", "failure_count", "attempts.jsonl", "slurm", "checkpoints", "everything"]
OUTAGES = ["none", "before", "after", "late"]
"""sbatch fails: before the controller has the job, after it, and with a controller that stood still and takes it later."""


class Controller:
    """Slurm's commands, with outages. Holds each job's comment and state."""

    def __init__(self):
        self.jobs: dict[str, tuple[str, str]] = {}
        self.outages: list[str] = []
        self.late: list[str] = []
        self.away = 0

    def run(self, *words):
        def answer(code=0, out="", err=""):
            return subprocess.CompletedProcess(words, code, out, err)

        if self.away:
            self.away -= 1
            return answer(1, err=AWAY)
        if words[0] == "squeue":
            live = {job: (comment, state) for job, (comment, state) in self.jobs.items()}
            if "--format=%A|%k" in words:
                found = answer(out="".join(f"{job}|{comment}\n" for job, (comment, _) in live.items()))
                self.jobs |= {str(len(self.jobs) + 1): (comment, "RUNNING") for comment in self.late}
                self.late = []
                return found
            return answer(out="".join(f"{job}|{state}|/job.sh\n" for job, (_, state) in live.items()))
        if words[0] == "sacct":
            return answer(1, err="Slurm accounting storage is disabled")
        (comment,) = re.findall(r"--comment=(\S+)", " ".join(words))
        outage = self.outages.pop(0) if self.outages else "none"
        if outage == "late":
            self.late.append(comment)
        if outage in ("none", "after"):
            self.jobs[str(len(self.jobs) + 1)] = (comment, "RUNNING")
        if outage == "none":
            return answer(out=f"{len(self.jobs)}\n")
        self.away = 2
        return answer(1, err=AWAY if outage == "before" else "Socket timed out on send/recv operation")


def ends(job: StageJob, job_id: str, state, why: str, step: int, deleted: str) -> None:
    """What a job leaves behind."""
    if step:
        checkpoint = job.directory / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        checkpoints.mark_complete(checkpoint, step)
    if why != "never began":
        attempt = attempts.Attempt(job_id, 0, "node0", "node0", attempts.now(), 0)
        attempts.begin(job.folder, attempt)
        if why != "killed":
            attempts.end(job.folder, attempt, why, failure=why.startswith("failed"))
    gone = {
        "nothing": [],
        "everything": [job.directory],
        "slurm": [job.folder],
        "checkpoints": [job.directory / "checkpoints"],
    }
    for path in gone.get(deleted, [job.folder / deleted]):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["train", "export"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    max_failures=st.integers(0, 3),
    endings=st.lists(
        st.tuples(st.sampled_from(STATES), st.sampled_from(WHYS), st.integers(0, 6), st.sampled_from(DELETED)),
        min_size=1,
        max_size=8,
    ),
    outages=st.lists(st.sampled_from(OUTAGES), max_size=20),
)
def test_submissions_come_to_an_end(template, monkeypatch, kind, max_failures, endings, outages):
    controller = Controller()
    controller.outages = list(outages)
    monkeypatch.setattr(cluster, "run", controller.run)
    monkeypatch.setattr(Patience, "pause", lambda self, seconds: None)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    view = view_of(template, slurm={"max_failures": max_failures})
    with tempfile.TemporaryDirectory() as base:
        output = Path(base) / "sft-x-1" / ("model" if kind == "export" else "") / "manifest.json"
        job = StageJob(kind, view, output, [], placement.resources(view, kind))
        follower = Follower(job, 0)
        counted = furthest = 0
        for number in range(1000):
            try:
                job_id = follower.submit()
            except UserError as error:
                assert "none will follow" in str(error)
                break
            assert [job for job, (_, state) in controller.jobs.items() if state == "RUNNING"] == [job_id]
            # The same for ever, as a job does that deletes what counts it.
            state, why, step, deleted = endings[number % len(endings)]
            step = step if kind == "train" else 0
            ends(job, job_id, state, why, step, deleted)
            controller.jobs[job_id] = (controller.jobs[job_id][0], state or "FAILED")
            verdict = follower.settle(job_id, State(state) if state else None)
            recorded = why not in ("killed", "never began")
            seen = deleted != "everything" and (deleted != "checkpoints" or recorded)
            advanced = seen and step > furthest
            furthest = max(furthest, step if advanced else 0)
            counted += state != "PREEMPTED" and not advanced
            if verdict.action == "end":
                break
        assert counted <= 1 + max_failures
        assert len(controller.jobs) == follower.submissions <= SUBMISSIONS * (1 + max_failures + len(endings))


def test_each_submission_beyond_the_limit_is_refused(template, tmp_path, monkeypatch):
    """Preempted again and again before its first step: no failure, and yet not for ever."""
    controller = Controller()
    monkeypatch.setattr(cluster, "run", controller.run)
    view = view_of(template, slurm={"max_failures": 1})
    job = StageJob("train", view, tmp_path / "sft-x-1" / "manifest.json", [], placement.resources(view, "train"))
    follower = Follower(job, 0)
    for _ in range(6):
        job_id = follower.submit()
        ends(job, job_id, "PREEMPTED", attempts.STOPPED, 0, "everything")
        assert follower.settle(job_id, State("PREEMPTED")).action == "again"
    with pytest.raises(
        UserError, match=r"6 Slurm jobs of this call have ended without its result, and none will follow"
    ):
        follower.submit()
