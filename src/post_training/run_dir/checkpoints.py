"""Complete checkpoints of a run, and the one to resume from.

A checkpoint counts once it has `COMPLETE.json`, written last, with the name and size of every
other file. TRL writes in place and silently resumes when the optimizer's file is missing.

Only parts of a save that was cut off, which never had a marker, are ever deleted. One that has a marker, and is
incomplete or cannot be read now, is set aside under another name.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically

MARKER = "COMPLETE.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    facts: dict[str, Any]
    """Of the marker, besides the files: `world_size`, `tokens`, `trained_tokens`, `seconds`, ..."""


@dataclass(frozen=True)
class Choice:
    """The checkpoint to resume from, and those that were passed over."""

    chosen: Checkpoint | None
    skipped: dict[Path, str] = field(default_factory=dict)
    """Newer than the chosen one -> why it does not count."""
    leftovers: list[Path] = field(default_factory=list)
    """Older than the chosen one and without a marker: their deletion was cut off."""

    def describe(self, note: str = "") -> str:
        """One line: where training starts, a note on how, and the checkpoints that were passed over."""
        start = f"resuming from {self.chosen.path.name}{note}" if self.chosen else "starting at step 0"
        passed = ", ".join(f"{path.name} ({why})" for path, why in self.skipped.items())
        return f"{start}; incomplete and passed over: {passed}" if passed else start


def flush(checkpoint: Path) -> None:
    """Put this machine's part of a checkpoint on disk. Once per node, before the barrier that precedes the marker."""
    for path in (*checkpoint.rglob("*"), checkpoint, checkpoint.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def mark_complete(checkpoint: Path, step: int, **facts: Any) -> None:
    """Write the marker of a checkpoint whose files are on disk, last and atomically.

    Raises UserError when the file of a rank is missing, as on a file system that the nodes do not share.
    """
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MARKER:
            # Opened, because a network file system may show an old size before that.
            with path.open("rb") as file:
                files[str(path.relative_to(checkpoint))] = os.fstat(file.fileno()).st_size
    world = facts.get("world_size", 1)
    lost = [rank for rank in range(world) if world > 1 and f"rng_state_{rank}.pth" not in files]
    if lost:
        raise UserError(
            f"{checkpoint}: has no rng_state_{lost[0]}.pth although rank {lost[0]} has saved; "
            "paths.output_base must be on a file system that all nodes share"
        )
    write_atomically(checkpoint / MARKER, json.dumps({"step": step, **facts, "files": files}, indent=1))


def why_incomplete(checkpoint: Path) -> str | None:
    """None for a complete checkpoint, else the reason in a few words."""
    name = MARKER
    try:
        marker = json.loads(_retried(lambda: (checkpoint / MARKER).read_text(encoding="utf-8")))
        for name, size in dict(marker["files"]).items():
            found = _retried((checkpoint / name).stat).st_size
            if found != size:
                return f"{name} has {found:,} of {size:,} bytes"
    except FileNotFoundError:
        return f"no {MARKER}" if name == MARKER else f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{MARKER} is damaged"
    return None


def _retried(read: Callable[[], Any]) -> Any:
    """The result of a function, tried again for some seconds when the file system fails rather than the file."""
    for pause in (0.2, 1.0, 3.0):
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError:
            time.sleep(pause)
    return read()


def checkpoints(directory: Path) -> list[Path]:
    """Every `checkpoint-<step>` of a directory, newest step first, complete or not."""
    found = [path for path in directory.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step, reverse=True)


def newest_complete(directory: Path) -> Choice:
    """The newest complete checkpoint, the newer ones that are incomplete, and leftovers of deletions."""
    skipped: dict[Path, str] = {}
    found = checkpoints(directory)
    for place, path in enumerate(found):
        why = why_incomplete(path)
        if why is None:
            leftovers = [older for older in found[place + 1 :] if _never_marked(older)]
            return Choice(_read(path), skipped, leftovers)
        skipped[path] = why
    return Choice(None, skipped)


def complete_at(directory: Path, step: int) -> Checkpoint | None:
    """The checkpoint of one step, if it is complete."""
    path = directory / f"checkpoint-{step}"
    return _read(path) if path.is_dir() and why_incomplete(path) is None else None


def _read(path: Path) -> Checkpoint:
    marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
    return Checkpoint(path, _step(path), {key: value for key, value in marker.items() if key not in ("files", "step")})


def discard_incomplete(choice: Choice) -> None:
    """Make room at the names of checkpoints to come: delete parts that were never complete, set others aside.

    The parts can never be resumed, they take the room that the next save needs, and TRL would write a
    new checkpoint of the same step over old files.
    """
    for path in (*choice.skipped, *choice.leftovers):
        if _never_marked(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            aside = path.with_name(f"set-aside-{path.name}-{time.time_ns()}")
            path.rename(aside)
            print(f"{path.name}: was complete once and is kept as {aside}", flush=True)


def _never_marked(checkpoint: Path) -> bool:
    """Whether the file system says for certain that there is no marker."""
    try:
        return MARKER not in os.listdir(checkpoint)
    except OSError:
        return False


def rotate(directory: Path, limit: int | None, best_step: int | None = None) -> None:
    """Keep the newest `limit` complete checkpoints, and that of `best_step`. Called after one was marked, so one always remains.

    TRL's own rotation counts unfinished ones and orders by time of change: it is switched off.
    """
    complete = [path for path in checkpoints(directory) if why_incomplete(path) is None]
    for path in (path for path in complete[limit:] if limit and _step(path) != best_step):
        (path / MARKER).unlink(missing_ok=True)  # a half-deleted one must not count
        shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
