"""Decides after a Slurm job has ended: finished, resubmit, or failed."""

import time
from dataclasses import dataclass
from pathlib import Path

from post_training.core.stages import STAGES
from post_training.run_dir import attempts
from post_training.run_dir.attempts import AttemptLine
from post_training.slurm import cluster
from post_training.slurm.cluster import State
from post_training.slurm.job import StageJob


@dataclass(frozen=True)
class Verdict:
    """What to do now."""

    action: str
    """`done`, `again` (submit it), or `end` (it failed, and stays so)."""
    message: str = ""


def settle(job: StageJob, job_id: str, state: State | None, latency_seconds: float) -> Verdict:
    """Record the end of a job that could not do so itself, count a failure, and decide.

    Args:
        job: the stage's job.
        job_id: the Slurm job that has ended.
        state: its last state in Slurm; None when Slurm has forgotten the job.
        latency_seconds: how long a file that another node has written may stay unseen here.
    """
    running = attempts.current(job.folder)
    if running and running.job_id == job_id:
        attempts.end_for(job.folder, running, state.name if state else None)
    line = attempts.last_of(job.folder, job_id)
    claims = (line is not None and line["why"] == attempts.DONE) or (state is not None and state.name == "COMPLETED")
    if _appears(job.output, latency_seconds if claims else 0):
        return Verdict("done")
    resumes_from = f"snakemake resumes from step {attempts.safe_steps(job.directory)} when you start it again"
    if state and state.name == "CANCELLED":
        if line is None:
            _add(job, job_id, attempts.CANCELLED, failure=False)
        return Verdict(
            "end", f"{job.name}: Slurm job {job_id} was cancelled with scancel; not resubmitting. {resumes_from}"
        )
    if line is None or claims:
        ended = state.name if state else "it is in no queue and no accounting"
        why = "failed: ended without its result" if claims else f"failed before it began: {ended}"
        line = _add(job, job_id, why, failure=True)
    elif line["why"] == attempts.STOPPED and line["new_steps"] <= 0 and not (state and state.name == "PREEMPTED"):
        # Nobody cancelled it, and it stopped: again and again it would cost allocations and give nothing.
        name = state.name if state else "unknown"
        line = _add(job, job_id, f"failed: stopped by a signal, no step done ({name})", failure=True)
    why, error = line["why"], "".join(f"\n    {text}" for text in attempts.first_error(job.folder, job_id))
    if why == attempts.OWNED and owner(job, job_id) is None:
        # Not by a Slurm job, which would be waited for: submitting again would find the same owner at once.
        return Verdict("end", f"{job.name}: job {job_id} found another process at work on this run:{error}")
    if not line["failure"]:
        return Verdict(
            "again", f"{job.name}: job {job_id} ended by {why} at step {line['steps']}; resumes in a new job"
        )
    count, allowed = attempts.failures(job.folder), job.max_failures
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


def owner(job: StageJob, but: str | None = None) -> str | None:
    """The live Slurm job of this stage, other than one that has just ended."""
    return next((job_id for job_id, _ in cluster.live_jobs(job.script) if job_id != but), None)
