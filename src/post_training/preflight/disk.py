"""Bytes that the runs will write, against what the file system and its quota leave."""

import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from post_training.core.format import gib
from post_training.core.manifest import user
from post_training.models.weights import BYTES
from post_training.preflight import memory
from post_training.preflight.check import Check, check
from post_training.preflight.subject import Subject

_SPARE = 1.1


@dataclass(frozen=True)
class Room:
    """What is left for us."""

    free: int
    source: str


@dataclass(frozen=True)
class Files:
    """Predicted bytes of a training's files on disk at its end."""

    checkpoint_bytes: int
    """One full checkpoint."""
    checkpoints_bytes: int
    """All that are kept."""
    inference_checkpoints_bytes: int
    export_bytes: int


def predict(subject: Subject) -> Files:
    """Bytes of full checkpoints, inference checkpoints and the export."""
    keeping, steps = subject.view["checkpointing"], subject.steps
    checkpoint = memory.checkpoint_bytes(subject)
    written = -(-steps // max(keeping["save_steps"], 1))
    limit = keeping["save_total_limit"]
    # The newest one is written before the oldest one goes.
    kept = written if limit is None else min(written, limit + 1)
    kept += subject.view["export"]["checkpoint"] == "best"
    model = BYTES[subject.view["model"]["dtype"]] * subject.shape.parameters
    inference = 4 * subject.trainable if subject.view["model"]["lora"] is not None else model
    every = keeping["inference_checkpoint_steps"]
    here = every is not None and every > 0 and keeping["inference_checkpoint_path"] is None
    return Files(checkpoint, checkpoint * kept, inference * (steps // every) if here else 0, model)


def check_disk(subjects: list[Subject], base: Path) -> Check:
    """All stages that are yet to be trained together, on the file system of the output base."""
    needed = 0
    for subject in subjects:
        files = asdict(predict(subject))
        needed += max(0, sum(files.values()) - files["checkpoint_bytes"] - _written(subject.run))
    room = left(base)
    return check(
        "resources.disk",
        f"{gib(needed)} of checkpoints and exports; {gib(room.free)} are free ({room.source})",
        fails=needed * _SPARE > room.free,
        warns=needed * 2 > room.free,
        remedy="raise checkpointing.save_steps or inference_checkpoint_steps, lower checkpointing.save_total_limit, free some room, or set "
        "paths.output_base to another file system",
    )


def left(base: Path) -> Room:
    """The smallest of: free bytes of the file system, and what Lustre's or the system's quota leaves to this user."""
    folder = next(path for path in (base, *base.absolute().parents) if path.is_dir())
    rooms = [Room(shutil.disk_usage(folder).free, "file system")]
    for words in (["lfs", "quota", "-q", "-u", user(), str(folder)], ["quota", "-w", "-p"]):
        free = quota_left(_output_of(words))
        if free is not None:
            rooms.append(Room(free, f"quota, by {words[0]}"))
            break
    return min(rooms, key=lambda room: room.free)


def quota_left(text: str) -> int | None:
    """Bytes below the limit, from the first line that has kilobytes used, quota and limit; None without a limit."""
    for line in text.splitlines():
        match = re.match(r"\s*(/\S*)\s+(\d+)\*?\s+(\d+)\s+(\d+)\b", line)
        if match:
            used, soft, hard = (int(match[group]) * 1024 for group in (2, 3, 4))
            limit = min((value for value in (soft, hard) if value), default=None)
            return None if limit is None else max(0, limit - used)
    return None


def _written(run: Path) -> int:
    """Bytes that an earlier attempt has written already, which do not have to fit once more."""
    folders = [run / name for name in ("checkpoints", "inference_checkpoints", "model")]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def _output_of(words: list[str]) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
