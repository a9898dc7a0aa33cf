"""Why each rank failed, in a file per rank, so that the launcher can show the first error first.

When one rank fails, the others soon fail too, in a collective that lost a member; on a terminal their
tracebacks bury the one that matters, and on another node it may come last.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically

_NO_ROOM = {errno.ENOSPC: "no space left on device", errno.EDQUOT: "disk quota exceeded", errno.EFBIG: "file too large"}
_NUMPY = re.compile(r"Not enough free space to write .*|\d+ requested and \d+ written")
# Words of torch, gloo and NCCL when another rank has gone.
_CONSEQUENCES = ("connection closed by peer", "connection reset", "connection refused", "broken pipe", "gloo", "nccl",
                 "timed out", "timeout", "distbackenderror", "socket")  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """How one rank failed."""

    rank: int
    host: str
    time: float
    """Seconds since the epoch."""
    line: str
    trace: str | None = None
    """Traceback, where it is not an error that the user can fix."""
    follows: bool = False
    """It is only a consequence of another rank's end."""


class PeerError(Exception):
    """Another rank has failed, and reports why."""


def report(folder: Path | None, rank: int, error: BaseException) -> None:
    """Write why this rank ends; to stderr where there is no folder or no room."""
    line, trace = str(error), None
    if not isinstance(error, UserError):
        line = " ".join(f"{type(error).__name__}: {error}".split())[:2000]
        if reason := no_room(error):
            line = f"{reason}; free some room and start again to resume ({line[:200]})"
        else:
            trace = "".join(traceback.format_exception(error))
    follows = isinstance(error, PeerError) or (
        trace is not None and any(word in line.lower() for word in _CONSEQUENCES)
    )
    if folder is not None:
        failure = Failure(rank, socket.gethostname(), time.time(), line, trace, follows)
        with contextlib.suppress(OSError):
            write_atomically(folder / f"rank-{rank}.json", json.dumps(asdict(failure)))
            return
    print(trace or line, file=sys.stderr, flush=True)


def read(folder: Path) -> list[Failure]:
    """All reports by time; those that are only a consequence of another one last."""
    found = []
    for path in folder.glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Failure(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda failure: (failure.follows, failure.time))


def clear(folder: Path) -> None:
    """A new attempt begins."""
    shutil.rmtree(folder, ignore_errors=True)


def no_room(error: BaseException | None, folder: Path | None = None) -> str | None:
    """`out/x.npy: no space left on device` or the like, when that is what an error comes from.

    Libraries in Rust and C++ give the errno as text or not at all, so the text is searched, too; numpy gives neither.

    Args:
        error: with what caused it.
        folder: named when the error names no file.
    """
    while error is not None:
        words = next(
            (words for number, words in _NO_ROOM.items() if os.strerror(number).lower() in str(error).lower()), None
        )
        if isinstance(error, OSError):
            short = error.errno is None and _NUMPY.fullmatch(str(error))
            words = _NO_ROOM.get(error.errno or 0, "no space left on device, or over quota" if short else words)
        if words:
            where = error.filename if isinstance(error, OSError) and error.filename else folder
            return f"{where}: {words}" if where else words
        error = error.__cause__ or error.__context__
    return None


def no_room_in(folder: Path) -> str | None:
    """`no space left on device` or the like, where a mebibyte cannot be written. For errors that do not say why."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return no_room(error)
    return None
