"""Complete checkpoints of a run, and the one to resume from.

A checkpoint counts once it has `COMPLETE.json`, written last, with the name, size and checksum (XXH3, 128 bits) of every
other file. TRL writes in place and silently resumes when the optimizer's file is missing. Sizes are compared whenever
a checkpoint is looked for; checksums by the ranks before they load it, each its own part. Markers of earlier versions have none.

Only parts of a save that was cut off, which never had a marker, are ever deleted. One that has a marker, and is
incomplete or cannot be read now, is set aside under another name.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from post_training.core.errors import UserError
from post_training.core.fingerprint import file_xxh3, write_atomically
from post_training.core.manifest import checksum

MARKER = "COMPLETE.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_OF_RANK = re.compile(r"(?:pp_rank_|rng_state_)(\d+)")


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


def checksums(checkpoint: Path, rank: int = 0, world_size: int = 1) -> dict[str, str]:
    """XXH3 (hex) of the files that a rank has written, by their names in the checkpoint; rank 0 has those of no rank."""
    return {name: file_xxh3(checkpoint / name) for name in _names(checkpoint) if _rank_of(name, world_size) == rank}


def mark_complete(checkpoint: Path, step: int, sums: Mapping[str, str] | None = None, **facts: Any) -> None:
    """Write the marker of a checkpoint whose files are on disk, last and atomically.

    `sums` has the `checksums` of all ranks; without it they are computed here.

    Raises UserError when the file of a rank is missing, as on a file system that the nodes do not share.
    """
    files = {}
    for name in _names(checkpoint):
        # Opened, because a network file system may show an old size before that.
        with (checkpoint / name).open("rb") as file:
            files[name] = os.fstat(file.fileno()).st_size
    world = facts.get("world_size", 1)
    lost = [rank for rank in range(world) if world > 1 and f"rng_state_{rank}.pth" not in files]
    if lost:
        raise UserError(
            f"{checkpoint}: has no rng_state_{lost[0]}.pth although rank {lost[0]} has saved; "
            "paths.output_base must be on a file system that all nodes share"
        )
    sums = checksums(checkpoint) if sums is None else sums
    marker = {"step": step, **facts, "files": files, "xxh3": {name: sums[name] for name in files}}
    write_atomically(checkpoint / MARKER, json.dumps(marker | {"checksum": checksum(marker)}, indent=1))


def why_incomplete(checkpoint: Path) -> str | None:
    """None for a complete checkpoint, else the reason in a few words."""
    name = MARKER
    try:
        marker = _marker(checkpoint)
        if not marker["files"] or marker.get("checksum", checksum(marker)) != checksum(marker):
            return f"{MARKER} is damaged"
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


def why_damaged(checkpoint: Path, rank: int = 0, world_size: int = 1) -> str | None:
    """The first of a rank's files whose content is not what was saved, in a few words; None when all are as they were.

    Reads every byte, which the rank will read anyway. Sizes are `why_incomplete`'s.
    """
    for name, expected in _marker(checkpoint).get("xxh3", {}).items():
        if _rank_of(name, world_size) == rank:
            try:
                found = _retried(lambda name=name: file_xxh3(checkpoint / name))  # type: ignore[misc]
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
            if found != expected:
                return f"{name} is not as it was saved: XXH3 {found[:12]}, not {expected[:12]}"
    return None


def set_aside(checkpoint: Path, why: str) -> None:
    """Give a checkpoint that cannot be resumed another name. It is kept."""
    aside = checkpoint.with_name(f"set-aside-{checkpoint.name}-{time.time_ns()}")
    checkpoint.rename(aside)
    print(f"{checkpoint.name}: {why}; was complete once and is kept as {aside}", flush=True)


def undamaged(directory: Path) -> Choice:
    """`newest_complete`, whose files are also as they were saved; damaged ones are set aside. For a single process."""
    while True:
        choice = newest_complete(directory)
        why = why_damaged(choice.chosen.path) if choice.chosen else None
        if choice.chosen is None or why is None:
            return choice
        set_aside(choice.chosen.path, why)


def _marker(checkpoint: Path) -> Any:
    return json.loads(_retried(lambda: (checkpoint / MARKER).read_text(encoding="utf-8")))


def _names(checkpoint: Path) -> list[str]:
    found = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER]
    return sorted(str(path.relative_to(checkpoint)) for path in found)


def _rank_of(name: str, world_size: int) -> int:
    """The rank that wrote a file, in whose node's memory it still is: of ZeRO's shards and random states by their names."""
    match = _OF_RANK.search(name)
    return int(match[1]) % world_size if match else 0


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
    about = ("files", "step", "xxh3", "checksum")
    return Checkpoint(path, _step(path), {key: value for key, value in _marker(path).items() if key not in about})


def discard_incomplete(choice: Choice) -> None:
    """Make room at the names of checkpoints to come: delete parts that were never complete, set others aside.

    The parts can never be resumed, they take the room that the next save needs, and TRL would write a
    new checkpoint of the same step over old files.
    """
    for path in (*choice.skipped, *choice.leftovers):
        if _never_marked(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            set_aside(path, choice.skipped.get(path, "has no marker"))


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
