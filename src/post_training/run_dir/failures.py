"""What ended a rank: told in a file each, so that the launcher can show the first error first. Light.

When one rank fails, the others soon fail too, in a collective that lost a member; on a terminal their
tracebacks bury the one that matters, and on another node it may come last.
"""

import contextlib
import errno
import json
import os
import shutil
import socket
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically

_NO_ROOM = {errno.ENOSPC: "no space left on device", errno.EDQUOT: "disk quota exceeded", errno.EFBIG: "file too large"}
# What torch, gloo and NCCL say when another rank has gone.
_CONSEQUENCES = ("connection closed by peer", "connection reset", "connection refused", "broken pipe", "gloo", "nccl",
                 "timed out", "timeout", "distbackenderror", "socket")  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """One rank's end."""

    rank: int
    host: str
    time: float
    """Seconds since the epoch."""
    line: str
    trace: str | None = None
    """Traceback, for what is not the user's to mend."""
    follows: bool = False
    """It says no more than that another rank has gone or has failed."""


class PeerError(Exception):
    """Another rank has failed, and says why."""


def report(folder: Path | None, rank: int, error: BaseException) -> None:
    """Write down why this rank ends; on stderr where there is no folder or no room."""
    line, trace = str(error), None
    if not isinstance(error, UserError):
        line = " ".join(f"{type(error).__name__}: {error}".split())[:2000]
        reason = no_room(error)
        if reason is not None:
            line = f"{reason}; free some room and start again to resume ({line[:200]})"
        else:
            trace = "".join(traceback.format_exception(error))
    follows = trace is not None and any(word in line.lower() for word in _CONSEQUENCES)
    follows = follows or isinstance(error, PeerError)
    failure = Failure(rank, socket.gethostname(), time.time(), line, trace, follows)
    if folder is not None:
        with contextlib.suppress(OSError):
            write_atomically(folder / f"rank-{rank}.json", json.dumps(asdict(failure)))
            return
    print(trace or line, file=sys.stderr, flush=True)


def read(folder: Path) -> list[Failure]:
    """All that was told, the most telling first: by time, those that only follow from another one last."""
    found = []
    for path in folder.glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Failure(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda failure: (failure.follows, failure.time))


def clear(folder: Path) -> None:
    """A new attempt begins."""
    shutil.rmtree(folder, ignore_errors=True)


def no_room(error: BaseException | None) -> str | None:
    """`no space left on device` or the like, when that is what an error comes from.

    Libraries in Rust and C++ give the errno as text or not at all, so its cause is looked for in words, too.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return f"{error.filename}: {_NO_ROOM[error.errno]}" if error.filename else _NO_ROOM[error.errno]
        for number, words in _NO_ROOM.items():
            if os.strerror(number).lower() in str(error).lower():
                return words
        error = error.__cause__ or error.__context__
    return None
