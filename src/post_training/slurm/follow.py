"""The jobs of one stage in one call of snakemake: submitted, and, once one has ended, finished, submitted again, or failed.

What stops it from submitting for ever is counted here, in the process that a user started, and not in files, which a job
may delete: a failure, and an end that left training no further than it was, `slurm.max_failures` times; and any submission,
`SUBMISSIONS` times as often as there can be reasons for one.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically
from post_training.core.stages import STAGES
from post_training.run_dir import attempts
from post_training.run_dir.attempts import AttemptLine
from post_training.slurm import cluster
from post_training.slurm.cluster import State
from post_training.slurm.job import StageJob, script
from post_training.slurm.patience import Patience, say

SUBMISSIONS = 3


@dataclass(frozen=True)
class Verdict:
    """What to do now."""

    action: str
    """`done`, `again` (submit it), `wait` (its job lives), or `end` (it failed, and stays so)."""
    message: str = ""


class Follower:
    """Submits and follows the jobs of a stage."""

    def __init__(self, job: StageJob, latency_seconds: float, stopping: threading.Event | None = None) -> None:
        """Of one call of snakemake.

        Args:
            job: the stage's job.
            latency_seconds: how long a file that another node has written may stay unseen here.
            stopping: set when snakemake is interrupted.
        """
        self.job, self.latency_seconds = job, latency_seconds
        self.patience = Patience(job.wait_seconds, stopping)
        self.submissions = 0
        self.failures = attempts.failures(job.folder)
        self.advances = 0
        """Ends that left training further than any before."""
        self._furthest = attempts.safe_steps(job.directory)

    @property
    def limit(self) -> int:
        """Submissions that this call may make so far."""
        return SUBMISSIONS * (1 + self.job.max_failures + self.advances)

    def live(self, but: str | None = None) -> str | None:
        """The live Slurm job of this stage, other than one that has just ended."""
        live = self.patience.ask(lambda: cluster.live_jobs(self.job.script))
        return next((job_id for job_id, _ in live if job_id != but), None)

    def submit(self) -> str:
        """Submit the stage; returns the Slurm job's id. Raises UserError at the limit, and with sbatch's message."""
        job = self.job
        if self.submissions >= self.limit:
            raise UserError(
                f"{job.name}: {self.submissions} Slurm jobs of this call have ended without its result, and none will follow "
                f"(at most {SUBMISSIONS} for each of slurm.max_failures, which is {job.max_failures}, the first one, and "
                f"{self.advances} that got further); see {job.folder}"
            )
        if self.submissions == 0 and self.failures > job.max_failures:
            say(f"{job.name}: had ended after {self.failures} failures; this call tries again, counting from 0")
            attempts.reset_failure_count(job.folder)
            self.failures = 0
        write_atomically(job.script, script(job))
        self.submissions += 1
        return cluster.submit(job.options, job.script, self.patience)

    def settle(self, job_id: str, state: State | None) -> Verdict:
        """Record the end of a job that could not do so itself, count a failure, and decide.

        Args:
            job_id: the Slurm job that has ended.
            state: its last state in Slurm; None when Slurm has forgotten the job.
        """
        job = self.job
        running = attempts.current(job.folder)
        if running and running.job_id == job_id:
            attempts.end_for(job.folder, running, state.name if state else None)
        line = attempts.last_of(job.folder, job_id)
        claims = (line is not None and line["why"] == attempts.DONE) or (
            state is not None and state.name == "COMPLETED"
        )
        if _appears(job.output, self.latency_seconds if claims else 0):
            return Verdict("done")
        # The job's own word, too: a network file system may show its checkpoints here only later.
        steps = max(attempts.safe_steps(job.directory), line["steps"] if line else 0)
        advanced, self._furthest = steps > self._furthest, max(steps, self._furthest)
        self.advances += advanced
        resumes_from = f"snakemake resumes from step {steps} when you start it again"
        if state and state.name == "CANCELLED":
            if line is None:
                _add(job, job_id, attempts.CANCELLED, failure=False)
            return Verdict(
                "end", f"{job.name}: Slurm job {job_id} was cancelled with scancel; not resubmitting. {resumes_from}"
            )
        preempted = state is not None and state.name == "PREEMPTED"
        if line is None and preempted:
            line = _add(job, job_id, attempts.PREEMPTED, failure=False)
        elif line is None or claims:
            ended = state.name if state else "it is in no queue and no accounting"
            why = "failed: ended without its result" if claims else f"failed before it began: {ended}"
            line = _add(job, job_id, why, failure=True)
        elif line["why"] in (attempts.STOPPED, attempts.WALL_TIME) and not (advanced or preempted):
            # Nobody cancelled it, and it stopped: again and again it would cost allocations and give nothing.
            how = "at its time limit" if line["why"] == attempts.WALL_TIME else "by a signal"
            name = state.name if state else "unknown"
            line = _add(job, job_id, f"failed: stopped {how}, no step further than before ({name})", failure=True)
        why, error = line["why"], "".join(f"\n    {text}" for text in attempts.first_error(job.folder, job_id))
        if why == attempts.OWNED and self.live(job_id) is None:
            # Not by a Slurm job, which would be waited for: submitting again would find the same owner at once.
            return Verdict("end", f"{job.name}: job {job_id} found another process at work on this run:{error}")
        if not line["failure"]:
            return Verdict(
                "again", f"{job.name}: job {job_id} ended by {why} at step {line['steps']}; resumes in a new job"
            )
        self.failures += 1
        count, allowed = max(self.failures, attempts.failures(job.folder)), job.max_failures
        error = f"its first error ({job.folder}/slurm-{job_id}.err and .out):{error}"
        if STAGES[job.kind].place != "ranks" and why == "failed: exit code 1":
            # An error in data or configuration: the same every time.
            return Verdict("end", f"{job.name}: job {job_id} {why}; {error}")
        if count > allowed:
            limit = f"{count} failures, slurm.max_failures is {allowed}; not submitted again"
            return Verdict(
                "end", f"{job.name}: {limit}. Last: job {job_id} {why}; {error}\nOnce it is fixed, {resumes_from}"
            )
        return Verdict(
            "again", f"{job.name}: job {job_id} {why} (failure {count} of {allowed} allowed); submitted again; {error}"
        )

    def release(self, job_id: str) -> Verdict:
        """A job that its node could not start, and that Slurm therefore holds for ever: released, a failure each time.

        Slurm has drained that node, so that the job begins on others.
        """
        self.failures += 1
        what = f"{self.job.name}: a node could not start Slurm job {job_id} (`sinfo -R` says which and why)"
        if self.failures > self.job.max_failures:
            cluster.cancel([job_id])
            limit = f"{self.failures} failures, slurm.max_failures is {self.job.max_failures}; not submitted again"
            return Verdict("end", f"{what}; {limit}")
        if problem := cluster.release(job_id):
            return Verdict(
                "wait", f"{what}; Slurm holds it and does not release it ({problem}): scontrol release {job_id}"
            )
        return Verdict("wait", f"{what}; released (failure {self.failures} of {self.job.max_failures} allowed)")


def _add(job: StageJob, job_id: str, why: str, *, failure: bool) -> AttemptLine:
    """A line for a job that ended before its attempt began, or that recorded less than is known now."""
    line = AttemptLine(
        job_id=job_id, restart=None, nodes=None, host=None, start=None, end=attempts.now(), why=why, failure=failure,
        steps=attempts.safe_steps(job.directory), new_steps=0,
    )  # fmt: skip
    attempts.add_line(job.folder, line)
    return line


def _appears(path: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.5)
    return True
