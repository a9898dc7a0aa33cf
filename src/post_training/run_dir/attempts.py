"""Records of a stage's Slurm job attempts, in `slurm/` of its directory.

    job.sh            as submitted last
    slurm-<id>.out    and .err: output of a job, over all its attempts
    attempt.json      the running attempt
    attempts.jsonl    one line per ended attempt: job, nodes, from, to, why, steps (`segments.jsonl` of earlier versions)
    cancelled         ids of jobs that a `snakemake` call cancelled when it was interrupted
    failure_count     failures since the run last had to be started again by hand

A job that is requeued has several attempts. Wall time, preemption and cancellation are no failures. Failures add up
over the run, however far training gets in between; only a new `snakemake` call resets the count, after the
run has given up.
"""

import contextlib
import json
import os
import re
import socket
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TypedDict, cast

from post_training.core import json_lines
from post_training.core.fingerprint import write_atomically
from post_training.run_dir.checkpoints import newest_complete

# Why an attempt ended; anything else is a failure.
DONE, WALL_TIME, STOPPED, CANCELLED = "done", "wall time", "stopped", "cancelled"
PREEMPTED, OWNED = "preempted", "owned by another job"
# Slurm's state of a job that could not record its end itself -> why it ended, and whether that is a failure.
_UNRECORDED = {
    "CANCELLED": (CANCELLED, False),
    "PREEMPTED": (PREEMPTED, False),
    "TIMEOUT": ("failed: the time limit came before it had saved", True),
    "NODE_FAIL": ("lost: its node failed", True),
    "BOOT_FAIL": ("lost: its node did not start", True),
    "OUT_OF_MEMORY": ("failed: out of memory", True),
    "DEADLINE": ("failed: deadline", True),
}
_ENDED_WITHOUT_RECORD = ("lost: ended without a record (killed, or its node failed)", True)
# Files of stages beside training that a job continues.
_LINES = ("answers.jsonl", "scores.jsonl")
# First words of each attempt's output, in files that all attempts of a job append to.
START = "post-training: attempt "
_TRACEBACK_LINES = 12


@dataclass(frozen=True)
class Attempt:
    """One start of a job."""

    job_id: str
    restart: int
    nodes: str
    host: str
    """First node, where the launcher runs."""
    start: str
    steps: int
    """Optimizer steps that were saved when it began."""
    gpus: int = 0
    """Of the whole allocation."""
    submitted: str = ""
    """When the job went into the queue; empty for one that Slurm has requeued."""


class AttemptLine(TypedDict, total=False):
    """A line of `attempts.jsonl`: an `Attempt` and how it ended. Null where a job ended before it began."""

    job_id: str
    restart: int | None
    nodes: str | None
    host: str | None
    start: str | None
    submitted: str
    gpus: int
    end: str
    why: str
    failure: bool
    steps: int
    """Saved when it ended."""
    new_steps: int


def folder_of(directory: Path) -> Path:
    """Where a stage's attempts are recorded: its `slurm/`; of an export, whose directory is replaced as a whole, its run's."""
    return directory.parent / "slurm" / "export" if directory.name == "model" else directory / "slurm"


def this_attempt(directory: Path) -> Attempt:
    """The attempt that this process, started by Slurm, is."""
    environment = os.environ
    nodes = environment.get("SLURM_JOB_NODELIST", socket.gethostname())
    restart = int(environment.get("SLURM_RESTART_COUNT") or 0)
    gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0) * int(environment.get("SLURM_JOB_NUM_NODES") or 1)
    script = folder_of(directory) / "job.sh"  # written right before it is submitted
    submitted = now(script.stat().st_mtime) if restart == 0 and script.is_file() else ""
    steps, host = safe_steps(directory), socket.gethostname()
    return Attempt(environment["SLURM_JOB_ID"], restart, nodes, host, now(), steps, gpus, submitted)


def now(seconds: float | None = None) -> str:
    """Local time with its zone; of `seconds` since the epoch where they are given."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def epoch_seconds(text: str | None) -> float | None:
    """The inverse of `now`; None for any other text."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except (ValueError, TypeError):
        return None


def safe_steps(directory: Path) -> int:
    """Steps of the newest complete checkpoint; shards of a reference; lines of answers or scores; 0 for other stages."""
    newest = newest_complete(directory / "checkpoints").chosen
    if newest:
        return newest.step
    lines = sum(path.read_bytes().count(b"\n") for path in map(directory.joinpath, _LINES) if path.is_file())
    return lines or sum(1 for _ in directory.glob("shards/*.npy"))


def current(folder: Path) -> Attempt | None:
    """The attempt that has not recorded its end."""
    try:
        return Attempt(**json.loads((folder / "attempt.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def begin(folder: Path, attempt: Attempt) -> None:
    """Record the running attempt."""
    write_atomically(folder / "attempt.json", json.dumps(asdict(attempt), indent=1) + "\n")


def end(folder: Path, attempt: Attempt, why: str, *, failure: bool) -> None:
    """Write the attempt's line, and count a failure."""
    steps = safe_steps(folder.parent)
    ended = {"end": now(), "why": why, "failure": failure, "steps": steps, "new_steps": steps - attempt.steps}
    add_line(folder, cast(AttemptLine, asdict(attempt) | ended))
    (folder / "attempt.json").unlink(missing_ok=True)


def end_for(folder: Path, attempt: Attempt, state: str | None) -> None:
    """Write the line of an attempt that could not do so itself.

    Args:
        folder: the stage's `slurm/`.
        attempt: what has ended.
        state: the job's last state in Slurm; None when there is none, or when the same job was requeued.
    """
    why, failure = _UNRECORDED.get(state or "", _ENDED_WITHOUT_RECORD)
    if attempt.job_id in _cancelled(folder):
        why, failure = CANCELLED, False
    end(folder, attempt, why, failure=failure)


def mark_cancelled(folder: Path, job_id: str) -> None:
    """Record that a call cancels its own job, which may be gone before it can record that itself."""
    write_atomically(folder / "cancelled", "\n".join([*_cancelled(folder), job_id]) + "\n")


def _cancelled(folder: Path) -> list[str]:
    path = folder / "cancelled"
    return path.read_text().split() if path.is_file() else []


def add_line(folder: Path, line: AttemptLine) -> None:
    """Append to attempts.jsonl, and count a failure."""
    folder.mkdir(parents=True, exist_ok=True)
    if line["failure"]:
        write_atomically(folder / "failure_count", f"{failures(folder) + 1}\n")
    json_lines.append(folder / "attempts.jsonl", dict(line))


def lines(folder: Path) -> list[AttemptLine]:
    """Every ended attempt, oldest first; a line that a kill cut off is left out."""
    names = ("segments.jsonl", "attempts.jsonl")
    return [cast(AttemptLine, line) for name in names for line in json_lines.read(folder / name)]


def seconds(line: AttemptLine) -> float:
    """How long an attempt was."""
    return _between(line.get("start"), line.get("end"))


def queue_seconds(attempts: list[AttemptLine]) -> float:
    """Time in the queue over all attempts: from the submission, or the end of the attempt before."""
    ends = [None, *(line.get("end") for line in attempts)]
    waits = (
        _between(line.get("submitted") or end, line.get("start")) for line, end in zip(attempts, ends, strict=False)
    )
    return sum(max(0.0, wait) for wait in waits)


def _between(first: str | None, last: str | None) -> float:
    begun, ended = epoch_seconds(first), epoch_seconds(last)
    return 0.0 if begun is None or ended is None else ended - begun


def last_of(folder: Path, job_id: str) -> AttemptLine | None:
    """The newest line of a job."""
    return next((line for line in reversed(lines(folder)) if line["job_id"] == job_id), None)


def failures(folder: Path) -> int:
    """The count; a missing or damaged file is 0."""
    try:
        return int((folder / "failure_count").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def reset_failure_count(folder: Path) -> None:
    """Let the run fail `slurm.max_failures` times again."""
    (folder / "failure_count").unlink(missing_ok=True)


def first_error(folder: Path, job_id: str) -> list[str]:
    """The lines of a job's output with its first error, the cause; later ones are mostly ranks that lost a peer."""
    text: list[str] = []
    for suffix in ("err", "out"):
        with contextlib.suppress(OSError), open(folder / f"slurm-{job_id}.{suffix}", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 20)))
            output = file.read().decode("utf-8", "replace").splitlines()
            start = max((number for number, line in enumerate(output, 1) if line.startswith(START)), default=0)
            text += output[start:]
    killed = [line for line in text if re.search(r"oom[-_ ]kill|out of memory", line, re.IGNORECASE)]
    if killed:
        return killed[:1]
    # srun reports first that a task has ended, and never why.
    own = [line for line in text if not re.match(r"(srun|slurmstepd\S*):", line)]
    for index, line in enumerate(own):
        if "Traceback (most recent call last)" in line:
            return _traceback(own[index:])
        if re.search(r"error\b|\bkilled\b|no space left", line, re.IGNORECASE):
            return [line]
    return [line for line in own or text if line.strip()][-3:]


def _traceback(text: list[str]) -> list[str]:
    """The end of a traceback that begins at the first line; each line may have its rank's prefix."""
    prefix = text[0][: text[0].index("Traceback")]
    shown = [line.removeprefix(prefix) for line in text[1:] if not re.fullmatch(r"[\s^~]+", line.removeprefix(prefix))]
    last = next((at for at, line in enumerate(shown) if line[:1].strip()), len(shown) - 1)
    return shown[max(0, last + 1 - _TRACEBACK_LINES) : last + 1]
