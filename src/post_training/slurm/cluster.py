"""Slurm commands (squeue, sacct, sbatch, scontrol, scancel), with retries while slurmctld is unreachable."""

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from post_training.core.errors import UserError
from post_training.run_dir.owner import client_environment

ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
)  # fmt: skip
NOTE = "post_training_slurm"
"""Attribute of a log record for the console: output, job id and state of a job."""
_SECONDS = 60
"""How long a busy controller may take for one answer."""


@dataclass(frozen=True)
class State:
    """A job's state in Slurm."""

    name: str
    """`PENDING`, `RUNNING`, ..., as in `squeue %T`."""
    where: str = ""
    """Nodes of a running job, reason of a waiting one."""

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return self.name in ENDED

    def __str__(self) -> str:
        return f"{self.name} {self.where}".strip()


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    """One command of Slurm; a missing program or no answer in a minute is exit code 127."""
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, env=client_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))


def states(jobs: list[str]) -> dict[str, State] | None:
    """States of jobs. One that Slurm has forgotten is missing; None when Slurm cannot be asked now."""
    if not jobs:
        return {}
    done = run("squeue", "--noheader", "--states=all", "--format=%A|%T|%R", f"--jobs={','.join(jobs)}")
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    found = {}
    for line in done.stdout.splitlines():
        job, name, where = line.split("|", 2)
        found[job] = State(name, "" if where == "(None)" else where)
    for job in jobs:
        if job not in found:
            # The newest state of its attempts, where there is accounting: `CANCELLED by 0` is CANCELLED.
            done = run("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job}")
            if done.returncode == 0 and (words := done.stdout.partition("\n")[0].split()):
                found[job] = State(words[0])
    return found


Jobs = dict[str, list[tuple[str, State]]]
"""Real path of a script -> pending and running jobs of any user that run it, oldest first."""


def queue() -> Jobs:
    """Every live job by its script. Raises UserError when Slurm does not answer now."""
    done = run("squeue", "--noheader", "--format=%A|%T|%o")
    if done.returncode:
        raise UserError(f"squeue: {one_line(done.stderr)}; Slurm must answer before a job can be submitted")
    found: Jobs = {}
    for line in sorted(done.stdout.splitlines(), key=lambda line: int(line.partition("|")[0])):
        job, name, command = line.split("|", 2)
        if name not in ENDED:
            found.setdefault(os.path.realpath(command), []).append((job, State(name)))
    return found


def live_jobs(script: Path) -> list[tuple[str, State]]:
    """Pending and running jobs of any user that run a script, oldest first; tried again while Slurm does not answer.

    The script's path identifies the stage: it survives the loss of every file that a killed process
    had no time to write.

    Raises:
        UserError: when Slurm cannot be asked; two jobs of one stage must not be submitted by mistake.
    """
    for _ in range(3):
        try:
            return queue().get(os.path.realpath(script), [])
        except UserError:
            time.sleep(5)
    return queue().get(os.path.realpath(script), [])


def submit(words: list[str], script: Path) -> str:
    """Submit a script; returns the job's id.

    Raises:
        UserError: with sbatch's message.
    """
    done = run("sbatch", "--parsable", *words, str(script))
    for _ in range(3):
        if done.returncode == 0 or not _may_pass(done.stderr):
            break
        # The answer was lost, or the controller is restarting; the job may be there all the same.
        time.sleep(10)
        if there := live_jobs(script):
            return there[-1][0]
        done = run("sbatch", "--parsable", *words, str(script))
    if done.returncode:
        raise UserError(f"sbatch: {one_line(done.stderr)} ({' '.join(words)})")
    if match := re.search(r"\d+", done.stdout):
        return match[0]
    raise UserError(f"sbatch: no job id in {done.stdout.strip()!r}")


def _may_pass(stderr: str) -> bool:
    return any(text in stderr for text in ("Socket timed out", "Unable to contact slurm controller", "timed out after"))


def requeue(job: str) -> bool:
    """Requeue a running job under its id. False where the cluster or the job does not allow it."""
    return run("scontrol", "requeue", job).returncode == 0


def cancel(jobs: list[str]) -> str | None:
    """Cancel jobs; returns scancel's error, if any."""
    done = run("scancel", *jobs)
    return one_line(done.stderr) if done.returncode else None


def one_line(text: str) -> str:
    """Slurm's error message without its prefixes."""
    prefix = r"^(sbatch|squeue|scancel|slurm_load_jobs|srun)?:? ?(error: )?"
    lines = [re.sub(prefix, "", line).strip() for line in text.splitlines()]
    return "; ".join(filter(None, lines)) or "no answer"
