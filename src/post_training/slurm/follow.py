"""What the submitting process makes of a job's end: it is done, goes on, or has come to its end. Light.

state of Slurm, what the job itself has recorded -> Verdict
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from post_training.core.stages import STAGES
from post_training.run_dir import attempts
from post_training.slurm import cluster
from post_training.slurm.cluster import State
from post_training.slurm.job import StageJob


@dataclass(frozen=True)
class Verdict:
    """What is to be done now."""

    action: str
    """`done`, `again` (submit it), or `end` (it failed, and stays so)."""
    message: str = ""


def settle(job: StageJob, job_id: str, state: State | None, latency_seconds: float) -> Verdict:
    """Close what an ended job has left open, count it if it is a failure, and decide.

    Args:
        job: the stage's job.
        job_id: the Slurm job that has ended.
        state: Slurm's last word; None when it has forgotten the job.
        latency_seconds: how long a file that another node has written may stay unseen here.
    """
    open_segment = attempts.current(job.folder)
    if open_segment and open_segment.job_id == job_id:
        attempts.end_for(job.folder, open_segment, state.name if state else None)
    line = attempts.last_of(job.folder, job_id)
    claims = (line is not None and line["why"] == attempts.DONE) or (state is not None and state.name == "COMPLETED")
    if _appears(job.output, latency_seconds if claims else 0):
        return Verdict("done")
    if state and state.name == "CANCELLED":
        if line is None:
            _add(job, job_id, attempts.CANCELLED, failure=False)
        return Verdict("end", _cancelled(job, job_id))
    if line is None or claims:
        ended = state.name if state else "it is in no queue and no accounting"
        why = "failed: ended without its result" if claims else f"failed before it began: {ended}"
        line = _add(job, job_id, why, failure=True)
    elif line["why"] == attempts.STOPPED and line["new_steps"] <= 0 and not (state and state.name == "PREEMPTED"):
        # Nobody cancelled it, and it stopped: again and again it would cost allocations and give nothing.
        line = _add(
            job,
            job_id,
            f"failed: stopped by a signal, no step done ({state.name if state else 'unknown'})",
            failure=True,
        )
    if line["why"] == attempts.OWNED and owner(job, job_id) is None:
        # Not by a job of Slurm's, which would be waited for: submitting again would find the same owner at once.
        told = "".join(f"\n    {text}" for text in attempts.first_error(job.folder, job_id))
        return Verdict("end", f"{job.name}: job {job_id} found somebody else at work on this run:{told}")
    if not line["failure"]:
        return Verdict(
            "again", f"{job.name}: job {job_id} ended by {line['why']} at step {line['steps']}; goes on in a new job"
        )
    return _after_failure(job, job_id, line["why"])


def _after_failure(job: StageJob, job_id: str, why: str) -> Verdict:
    count, allowed = attempts.failures(job.folder), job.max_failures
    told = "".join(f"\n    {line}" for line in attempts.first_error(job.folder, job_id))
    where = f"{job.folder}/slurm-{job_id}.err and .out"
    if STAGES[job.kind].place != "ranks" and why == "failed: exit code 1":
        # Its own words, about data or configuration: the same every time.
        return Verdict("end", f"{job.name}: job {job_id} {why}; its first error ({where}):{told}")
    if count > allowed:
        return Verdict(
            "end",
            f"{job.name}: {count} failures, slurm.max_failures is {allowed}; not submitted again. "
            f"Last: job {job_id} {why}; its first error ({where}):{told}\n"
            f"Mend it and start snakemake again: it goes on from step {attempts.safe_steps(job.directory)}",
        )
    return Verdict(
        "again", f"{job.name}: job {job_id} {why} (failure {count} of {allowed} allowed); submitted again{told}"
    )


def _cancelled(job: StageJob, job_id: str) -> str:
    return (
        f"{job.name}: Slurm job {job_id} was cancelled from outside, which is taken as your word: it is not submitted "
        f"again. snakemake goes on from step {attempts.safe_steps(job.directory)} when you start it again"
    )


def _add(job: StageJob, job_id: str, why: str, *, failure: bool) -> dict[str, Any]:
    """A line for an end without a segment."""
    steps = attempts.safe_steps(job.directory)
    line: dict[str, Any] = dict.fromkeys(("restart", "nodes", "host", "start"))
    line |= {"job_id": job_id, "end": attempts.now(), "why": why, "failure": failure, "steps": steps, "new_steps": 0}
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
    live = [job_id for job_id, _ in cluster.live_jobs(job.script) if job_id != but]
    return live[0] if live else None
