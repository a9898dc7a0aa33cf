"""What a stage's folder `slurm/` remembers, so that whoever looks next knows how to go on. Light.

    job.sh           what was submitted last
    slurm-<id>.out   and .err: output of a job, over all its starts
    segment.json     who runs now: the token without which a rank may not go on
    segments.jsonl   one line a start that has ended: job, nodes, from, to, why, steps
    cancelled        ids of jobs that a call has cancelled when it was interrupted
    failure_count    failures since the last time that a person's call had to begin again

A segment is one start of a job: a job that is requeued has several. Wall time, preemption and
cancellation are no failures. A failure adds one to the count, and nothing takes it away, however far
training gets in between; only a new `snakemake` call sets it back, once it has ended a run, and says so.
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
from typing import Any

from post_training.core import json_lines
from post_training.core.fingerprint import write_atomically
from post_training.run_dir.checkpoints import newest_complete

# Slurm's word for an end that the job could not record itself -> ours, and whether it is a failure.
_UNRECORDED = {
    "CANCELLED": ("cancelled", False),
    "PREEMPTED": ("preempted", False),
    "TIMEOUT": ("failed: the time limit came before it had saved", True),
    "NODE_FAIL": ("lost: its node failed", True),
    "BOOT_FAIL": ("lost: its node did not start", True),
    "OUT_OF_MEMORY": ("failed: out of memory", True),
    "DEADLINE": ("failed: deadline", True),
}
_LOST = ("lost: ended without a word (killed, or its node failed)", True)
# Why a segment ended. Other words mean a failure.
DONE, WALL_TIME, STOPPED, CANCELLED, OWNED, PREEMPTED = (
    "done",
    "wall time",
    "stopped",
    "cancelled",
    "owned by another job",
    "preempted",
)


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
    """Optimizer steps that were safe when it began."""
    gpus: int = 0
    """Of the whole allocation."""
    submitted: str = ""
    """When the job went into the queue; empty for one that Slurm has started again."""

    @property
    def token(self) -> str:
        """What tells this start from every other one of the stage."""
        return f"{self.job_id}.{self.restart}"


def folder_of(directory: Path) -> Path:
    """`slurm/` of a stage's directory."""
    return directory / "slurm"


def this_attempt(directory: Path) -> Attempt:
    """The segment that this process, started by Slurm, is."""
    found = os.environ
    nodes = found.get("SLURM_JOB_NODELIST", socket.gethostname())
    restart = int(found.get("SLURM_RESTART_COUNT") or 0)
    gpus = int(found.get("SLURM_GPUS_ON_NODE") or 0) * int(found.get("SLURM_JOB_NUM_NODES") or 1)
    script = folder_of(directory) / "job.sh"  # written right before it is submitted
    submitted = now(script.stat().st_mtime) if restart == 0 and script.is_file() else ""
    steps, host = safe_steps(directory), socket.gethostname()
    return Attempt(found["SLURM_JOB_ID"], restart, nodes, host, now(), steps, gpus, submitted)


def now(seconds: float | None = None) -> str:
    """Local time with its zone; of `seconds` since the epoch where they are given."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def epoch_seconds(told: str | None) -> float | None:
    """The inverse of `now`; None for what is no such time."""
    try:
        return datetime.fromisoformat(told or "").timestamp()
    except (ValueError, TypeError):
        return None


def safe_steps(directory: Path) -> int:
    """Steps of the newest whole checkpoint; shards of a reference; 0 for stages without either."""
    newest = newest_complete(directory / "checkpoints").chosen
    return newest.step if newest else sum(1 for _ in directory.glob("shards/*.npy"))


def current(folder: Path) -> Attempt | None:
    """The segment that has not said that it ended."""
    try:
        return Attempt(**json.loads((folder / "segment.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def begin(folder: Path, segment: Attempt) -> None:
    """From now on this segment is the one whose ranks may train."""
    write_atomically(folder / "segment.json", json.dumps(asdict(segment), indent=1) + "\n")


def end(folder: Path, segment: Attempt, why: str, *, failure: bool) -> None:
    """Write the segment's line, count a failure, and take the token away from its ranks."""
    steps = safe_steps(folder.parent)
    line = asdict(segment) | {
        "end": now(),
        "why": why,
        "failure": failure,
        "steps": steps,
        "new_steps": steps - segment.steps,
    }
    add_line(folder, line)
    (folder / "segment.json").unlink(missing_ok=True)


def end_for(folder: Path, segment: Attempt, state: str | None) -> None:
    """Write the line of a segment that could not do so itself.

    Args:
        folder: the stage's `slurm/`.
        segment: what has ended.
        state: Slurm's last word on its job; None when there is none, or when the same job has started again.
    """
    why, failure = _UNRECORDED.get(state or "", _LOST)
    if segment.job_id in _cancelled(folder):
        why, failure = CANCELLED, False
    end(folder, segment, why, failure=failure)


def mark_cancelled(folder: Path, job_id: str) -> None:
    """A call cancels its own job; the job may be gone before it can say so, and Slurm forgets."""
    write_atomically(folder / "cancelled", "\n".join([*_cancelled(folder), job_id]) + "\n")


def _cancelled(folder: Path) -> list[str]:
    try:
        return (folder / "cancelled").read_text().split()
    except FileNotFoundError:
        return []


def add_line(folder: Path, line: dict[str, Any]) -> None:
    """One line of segments.jsonl, and the count if it is a failure."""
    folder.mkdir(parents=True, exist_ok=True)
    if line["failure"]:
        write_atomically(folder / "failure_count", f"{failures(folder) + 1}\n")
    json_lines.append(folder / "segments.jsonl", line)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Every segment that has ended, oldest first; a line that a kill cut off is left out."""
    return list(json_lines.read(folder / "segments.jsonl"))


def seconds(line: dict[str, Any]) -> float:
    """How long a segment was, by its line."""
    return _between(line.get("start"), line.get("end"))


def queue_seconds(segments: list[dict[str, Any]]) -> float:
    """How long a stage's job waited for all of its starts: from its submission, or the end of the start before."""
    ends = [None, *(line.get("end") for line in segments)]
    return sum(
        max(0.0, _between(line.get("submitted") or end, line.get("start")))
        for line, end in zip(segments, ends, strict=False)
    )


def _between(first: str | None, last: str | None) -> float:
    begun, ended = epoch_seconds(first), epoch_seconds(last)
    return 0.0 if begun is None or ended is None else ended - begun


def last_of(folder: Path, job_id: str) -> dict[str, Any] | None:
    """The newest line of a job."""
    return next((line for line in reversed(lines(folder)) if line["job_id"] == job_id), None)


def failures(folder: Path) -> int:
    """The count; a missing or damaged file is 0."""
    try:
        return int((folder / "failure_count").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def reset_failure_count(folder: Path) -> None:
    """A person wants another try."""
    (folder / "failure_count").unlink(missing_ok=True)


def first_error(folder: Path, job_id: str, limit: int = 12) -> list[str]:
    """The lines of a job's output that say what went wrong first.

    What comes first is the cause; later ones are mostly ranks that miss the one that failed.
    """
    text: list[str] = []
    for suffix in ("err", "out"):
        with contextlib.suppress(OSError), open(folder / f"slurm-{job_id}.{suffix}", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 20)))
            text += _of_last_start(file.read().decode("utf-8", "replace").splitlines())
    killed = [line for line in text if re.search(r"oom[-_ ]kill|out of memory", line, re.IGNORECASE)]
    if killed:
        return killed[:1]
    # srun tells first that a task has ended, and never why.
    own = [line for line in text if not re.match(r"(srun|slurmstepd\S*):", line)]
    for index, line in enumerate(own):
        if "Traceback (most recent call last)" in line:
            return _traceback(own[index:], limit)
        if re.search(r"error\b|\bkilled\b|no space left", line, re.IGNORECASE):
            return [line]
    return [line for line in own or text if line.strip()][-3:]


def _traceback(text: list[str], limit: int) -> list[str]:
    """The end of a traceback that begins at the first line; each line may bear its rank's prefix."""
    prefix = text[0][: text[0].index("Traceback")]
    shown = [line.removeprefix(prefix) for line in text[1:] if not re.fullmatch(r"[\s^~]+", line.removeprefix(prefix))]
    last = next((at for at, line in enumerate(shown) if line[:1].strip()), len(shown) - 1)
    return shown[max(0, last - limit + 1) : last + 1]


def _of_last_start(text: list[str]) -> list[str]:
    """A requeued job appends to its files."""
    starts = [index for index, line in enumerate(text) if line.startswith(START)]
    return text[starts[-1] + 1 :] if starts else text


START = "post-training: start "
