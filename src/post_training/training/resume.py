"""Which checkpoints are whole, and which one a run continues from. Light.

A checkpoint counts once it holds `COMPLETE.json`, written last, with the name and size of every
other file. TRL writes in place and continues without a word when the optimizer's file is missing.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from post_training.fingerprint import write_atomically

MARKER = "COMPLETE.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    step: int
    facts: dict[str, Any]
    """What the marker says besides the files: `world_size`, `tokens`, `trained_tokens`, `seconds`."""


@dataclass(frozen=True)
class Choice:
    """What a start found."""

    chosen: Checkpoint | None
    skipped: dict[Path, str] = field(default_factory=dict)
    """Newer than the chosen one -> why it does not count."""

    def describe(self) -> str:
        """One line: where training starts and what was passed over."""
        start = f"resuming from {self.chosen.path.name}" if self.chosen else "starting at step 0"
        passed = ", ".join(f"{path.name} ({why})" for path, why in self.skipped.items())
        return f"{start}; not whole and passed over: {passed}" if passed else start


def mark_complete(checkpoint: Path, step: int, **facts: Any) -> None:
    """Make a checkpoint count: every file on disk first, then the marker, atomically."""
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MARKER:
            files[str(path.relative_to(checkpoint))] = path.stat().st_size
            _fsync(path)
    for folder in (checkpoint, *(path for path in checkpoint.rglob("*") if path.is_dir())):
        _fsync(folder)
    _fsync(checkpoint.parent)
    write_atomically(checkpoint / MARKER, json.dumps({"step": step, **facts, "files": files}, indent=1))


def why_incomplete(checkpoint: Path) -> str | None:
    """None for a whole checkpoint, else the reason in a few words."""
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        files = dict(marker["files"])
    except FileNotFoundError:
        return f"no {MARKER}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MARKER} is damaged"
    for name, size in files.items():
        try:
            found = (checkpoint / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} of {size:,} bytes"
    return None


def checkpoints(directory: Path) -> list[Path]:
    """Every `checkpoint-<step>` below, newest step first, whole or not."""
    found = [path for path in directory.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step, reverse=True)


def newest_complete(directory: Path) -> Choice:
    """The newest whole checkpoint, and the newer ones that are not whole."""
    skipped: dict[Path, str] = {}
    for path in checkpoints(directory):
        why = why_incomplete(path)
        if why is None:
            marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
            facts = {key: value for key, value in marker.items() if key not in ("files", "step")}
            return Choice(Checkpoint(path, _step(path), facts), skipped)
        skipped[path] = why
    return Choice(None, skipped)


def discard_incomplete(choice: Choice) -> None:
    """Remove the parts of checkpoints that never became whole.

    They can never be resumed, they take the room that the next save needs, and TRL would write a new
    checkpoint of the same step over old files.
    """
    for path in choice.skipped:
        shutil.rmtree(path, ignore_errors=True)


def rotate(directory: Path, limit: int | None) -> None:
    """Keep the newest `limit` whole checkpoints. Called after one was marked, so one always remains.

    TRL's own rotation counts unfinished ones and orders by time of change: it is switched off.
    """
    whole = [path for path in checkpoints(directory) if why_incomplete(path) is None]
    for path in whole[limit:] if limit else []:
        (path / MARKER).unlink(missing_ok=True)  # a half-deleted one must not count
        shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1])


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
