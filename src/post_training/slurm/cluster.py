"""Slurm commands: squeue, sacct, sbatch, scontrol, scancel. Where no answer comes, they raise AwayError."""

import os
import re
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

from post_training.core.errors import UserError
from post_training.run_dir.owner import client_environment
from post_training.slurm.patience import AwayError, Patience

ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
)  # fmt: skip
NOTE = "post_training_slurm"
"""Attribute of a log record for the console: output, job id and state of a job."""
_SECONDS = 60
"""How long a busy controller may take for one answer."""
_SETTLE_SECONDS = 5.0
"""A controller that stood still serves what had reached it before; that may take so long after its first answer."""
_AWAY = ("unable to contact", "timed out", "zero bytes", "connection refused", "connection reset", "not connected",
         "standby mode", "munge", "temporarily unable")  # fmt: skip
_MISSING, _NO_ANSWER = 127, 124


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

    @property
    def launch_failed(self) -> bool:
        """Whether Slurm holds the job because its node could not start it (a failing prolog, say), until it is released."""
        return self.name == "PENDING" and "launch failed" in self.where and "held" in self.where

    def __str__(self) -> str:
        return f"{self.name} {self.where}".strip()


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    """One command of Slurm; exit code 127 for a missing program, 124 for no answer in a minute."""
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, env=client_environment()
        )
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(words, _NO_ANSWER, "", str(error))
    except OSError as error:
        return subprocess.CompletedProcess(words, _MISSING, "", str(error))


def is_away(done: "subprocess.CompletedProcess[str]") -> bool:
    """Whether a command has failed because Slurm did not answer, rather than by what it said."""
    return done.returncode == _NO_ANSWER or (
        done.returncode not in (0, _MISSING) and any(text in done.stderr.lower() for text in _AWAY)
    )


def _squeue(*words: str) -> str:
    """What squeue prints. Raises AwayError without an answer, UserError where there is no squeue."""
    done = run("squeue", "--noheader", *words)
    if done.returncode == 0 or "Invalid job id" in done.stderr:
        return done.stdout
    raise (UserError if done.returncode == _MISSING else AwayError)(f"squeue: {one_line(done.stderr)}")


def states(jobs: list[str]) -> dict[str, State]:
    """States of jobs; one that Slurm has forgotten is missing. Raises AwayError."""
    if not jobs:
        return {}
    text = _squeue("--states=all", "--format=%A|%T|%R", f"--jobs={','.join(jobs)}")
    found = {}
    for line in text.splitlines():
        job, name, where = line.split("|", 2)
        found[job] = State(name, "" if where == "(None)" else where)
    for job in jobs:
        if job not in found:
            # The newest state of its attempts, where there is accounting: `CANCELLED by 0` is CANCELLED.
            done = run("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job}")
            if is_away(done):
                raise AwayError(f"sacct: {one_line(done.stderr)}")
            if done.returncode == 0 and (words := done.stdout.partition("\n")[0].split()):
                found[job] = State(words[0])
    return found


Jobs = dict[str, list[tuple[str, State]]]
"""Real path of a script -> pending and running jobs of any user that run it, oldest first."""


def queue() -> Jobs:
    """Every live job by its script. Raises AwayError."""
    found: Jobs = {}
    for line in sorted(_squeue("--format=%A|%T|%o").splitlines(), key=lambda line: int(line.partition("|")[0])):
        job, name, command = line.split("|", 2)
        if name not in ENDED:
            found.setdefault(os.path.realpath(command), []).append((job, State(name)))
    return found


def live_jobs(script: Path) -> list[tuple[str, State]]:
    """Pending and running jobs of any user that run a script, oldest first. Raises AwayError.

    The script's path identifies the stage: it survives the loss of every file that a killed process
    had no time to write.
    """
    return queue().get(os.path.realpath(script), [])


def submit(words: list[str], script: Path, patience: Patience) -> str:
    """Submit a script exactly once, however often Slurm must be asked; returns the job's id.

    An answer can be lost, or a request be served after its sender has given up. The job is therefore found again by a
    comment that no other has, in the queue and among those that have ended, before it is submitted once more.

    Raises:
        UserError: with sbatch's message.
    """
    token = f"post-training-{secrets.token_hex(8)}"
    given = next((word.partition("=")[2] for word in reversed(words) if word.startswith("--comment=")), "")
    words = [*words, f"--comment={given} {token}" if given else f"--comment={token}"]
    asked = False

    def once() -> str:
        nonlocal asked
        if asked and (there := _with_comment(token) or _after_a_pause(token, patience)):
            return there
        asked = True
        done = run("sbatch", "--parsable", *words, str(script))
        if is_away(done):
            raise AwayError(f"sbatch: {one_line(done.stderr)}")
        if done.returncode:
            raise UserError(f"sbatch: {one_line(done.stderr)} ({' '.join(words)})")
        if match := re.search(r"\d+", done.stdout):
            return match[0]
        raise UserError(f"sbatch: no job id in {done.stdout.strip()!r}")

    return patience.ask(once)


def _after_a_pause(token: str, patience: Patience) -> str | None:
    patience.pause(_SETTLE_SECONDS)
    return _with_comment(token)


def _with_comment(token: str) -> str | None:
    """The job that carries a comment, live or ended. Raises AwayError."""
    for line in _squeue("--states=all", "--format=%A|%k").splitlines():
        job, _, comment = line.partition("|")
        if token in comment:
            return job
    # The controller forgets a job minutes after its end; the submit line is kept also where comments are not.
    columns = "--format=JobIDRaw,Comment,SubmitLine"
    done = run("sacct", "--noheader", "--allocations", "--parsable2", "--starttime=now-1days", columns)
    return next((line.partition("|")[0] for line in done.stdout.splitlines() if token in line), None)


def was_away(job: str, patience: Patience) -> bool:
    """Whether Slurm gives no answer now; then waits until it does. What a command has just failed at is to be tried again.

    Raises:
        UserError: when it stays away.
    """
    try:
        states([job])
    except AwayError:
        patience.ask(lambda: states([job]))
        return True
    return False


def requeue(job: str) -> bool:
    """Requeue a running job under its id. False where the cluster or the job does not allow it."""
    return run("scontrol", "requeue", job).returncode == 0


def release(job: str) -> str | None:
    """Let a held job wait for nodes again; returns scontrol's error, if any."""
    done = run("scontrol", "release", job)
    return one_line(done.stderr) if done.returncode else None


def cancel(jobs: list[str]) -> str | None:
    """Cancel jobs; returns scancel's error, if any."""
    done = run("scancel", *jobs)
    return one_line(done.stderr) if done.returncode else None


def one_line(text: str) -> str:
    """Slurm's error message without its prefixes."""
    prefix = r"^(sbatch|squeue|scancel|scontrol|slurm_load_jobs|srun)?:? ?(error: )?"
    lines = [re.sub(prefix, "", line).strip() for line in text.splitlines()]
    return "; ".join(filter(None, lines)) or "no answer"
