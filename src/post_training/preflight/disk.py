"""Bytes that the runs will write, against what the file system and its quota leave."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path

from post_training.core.format import gib
from post_training.preflight import memory, speed
from post_training.preflight.check import Check, judged
from post_training.preflight.subject import Subject

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SPARE = 1.1


@dataclass(frozen=True)
class Room:
    """What is left for us."""

    free: int
    source: str


def predict(subject: Subject) -> dict[str, int]:
    """Bytes of full checkpoints, inference checkpoints and the export, as they will lie on the disk in the end."""
    keeping, steps = subject.view["checkpointing"], subject.steps
    one = speed.checkpoint_bytes(subject)
    written = -(-steps // max(keeping["save_steps"], 1))
    limit = keeping["save_total_limit"]
    # The newest one is written before the oldest one goes.
    kept = written if limit is None else min(written, limit + 1)
    narrow = _BYTES[subject.view["model"]["dtype"]]
    whole = narrow * subject.shape.parameters
    inference = 4 * memory.trainable(subject) if subject.view["model"]["lora"] is not None else whole
    every = keeping["inference_checkpoint_steps"]
    between = steps // every if every is not None and every > 0 else 0
    elsewhere = keeping["inference_checkpoint_path"] is not None
    return {
        "checkpoint_bytes": one,
        "checkpoints_bytes": one * kept,
        "inference_checkpoints_bytes": 0 if elsewhere else inference * between,
        "export_bytes": whole,
    }


def check(subjects: list[Subject], base: Path) -> Check:
    """All stages that are yet to be trained together, on the file system of the output base."""
    needed = 0
    for subject in subjects:
        told = predict(subject)
        parts = ("checkpoints_bytes", "inference_checkpoints_bytes", "export_bytes")
        needed += max(0, sum(told[part] for part in parts) - _written(subject.run))
    room = left(base)
    short = needed * _SPARE > room.free
    return judged(
        "resources.disk",
        f"{gib(needed)} of checkpoints and exports; {gib(room.free)} are free ({room.source})",
        fails=short,
        warns=needed * 2 > room.free,
        remedy="raise checkpointing.save_steps or inference_checkpoint_steps, lower checkpointing.save_total_limit, free some room, or set "
        "paths.output_base to another file system",
    )


def left(base: Path) -> Room:
    """The smallest of: free bytes of the file system, and what Lustre's or the system's quota leaves to this user."""
    place = next(path for path in (base, *base.absolute().parents) if path.is_dir())
    rooms = [Room(shutil.disk_usage(place).free, "file system")]
    for words in (["lfs", "quota", "-q", "-u", _user(), str(place)], ["quota", "-w", "-p"]):
        free = quota_left(_said(words))
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
    return sum(
        path.stat().st_size
        for name in ("checkpoints", "inference_checkpoints", "model")
        for path in (run / name).rglob("*")
        if path.is_file()
    )


def _said(words: list[str]) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):
        return ""
