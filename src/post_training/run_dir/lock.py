"""Ownership of a directory: one process at a time writes to it, and a dead one is succeeded by exactly one other.

Used for a run directory, for the submission of a stage's Slurm job, and for Snakemake's working directory.

Owners are numbered files, `owner.<n>.json`; the highest number is the owner. To take over from n is to
create n+1, which a file system lets exactly one process do (a hard link to a finished file, which is
atomic on NFS and Lustre too, where `flock` may succeed for everybody). The newest file is never
removed, so that a process which slept for an hour over its decision cannot create a number again.

A node that Slurm has given up may still run: its ranks would save checkpoints beside those of the job that was
requeued elsewhere. No signal reaches them there, but the file system does: a rank ends itself when its launcher
is the owner no longer (`end_with_owner`), and a new owner first gives such ranks the time to notice.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from post_training.core.errors import UserError
from post_training.core.fingerprint import naming, write_atomically
from post_training.run_dir.owner import Owner, same_machine, this_process, why_alive

LOCKED = 75
"""Exit code of a launcher that found a live owner (sysexits' EX_TEMPFAIL)."""
HEARTBEAT_SECONDS = 15.0
POLL_SECONDS = 3.0
FENCE_SECONDS = 15.0
"""How long a new owner waits for ranks that may have outlived the former one; they poll every POLL_SECONDS."""
VARIABLE = "POST_TRAINING_OWNER"
"""Path of the launcher's owner file, set for every rank."""
_NAME = re.compile(r"owner\.(\d+)\.json")


class LockedError(UserError):
    """Another live process owns the directory."""


class Lock:
    """A directory that this process owns, kept fresh by a thread until `release`."""

    def __init__(self, path: Path, owner: Owner, on_loss: Callable[[], None]) -> None:
        self.path, self.owner, self._on_loss = path, owner, on_loss
        self.lost = False
        """Another process has taken over, which happens only to one that stood still for minutes or was requeued."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._thread.start()

    def mark_stopping(self) -> None:
        """Let the next attempt wait for this process instead of giving up."""
        self._rewrite(replace(self.owner, stopping=True))

    def release(self) -> None:
        """Give the directory back."""
        self._ended.set()
        self._thread.join()
        self._rewrite(replace(self.owner, released=True))

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _rewrite(self, owner: Owner) -> None:
        self.owner = owner
        if not self.lost:
            with contextlib.suppress(OSError):  # a full disk must not hide what the run itself has to say
                write_atomically(self.path, _text(owner))

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            if _succeeded(self.path):
                self.lost = True
                self._on_loss()
                return
            with contextlib.suppress(OSError):  # gone for a moment; staleness counts minutes
                os.utime(self.path)


def take(
    directory: Path,
    on_loss: Callable[[], None] = lambda: None,
    patience_seconds: float = 60.0,
    give_up: Callable[[], str | None] = lambda: None,
    *,
    alone: bool = False,
) -> Lock:
    """Become the owner, until the returned lock's block ends or it is released.

    Args:
        directory: made if it is missing.
        on_loss: called from another thread when the lock is `lost`; the ranks must end at once.
        patience_seconds: how long to wait for an owner that is stopping.
        give_up: asked before the lock is taken; a reason to leave it.
        alone: no process on another node belongs to the owner, so that a Slurm job around it is no sign of life, and the
            work is short: any live owner is waited for.

    Raises:
        LockedError: another live process owns it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    me = replace(this_process(), slurm_job_id=None) if alone else this_process()
    deadline = time.monotonic() + patience_seconds
    waiting = False
    while True:
        if reason := give_up():
            raise LockedError(f"{directory}: {reason}; nothing is done")
        number, other = _newest(directory)
        alive = why_alive(other, me, directory / f"owner.{number}.json") if other else None
        if other and alive:
            if not (other.stopping or alone) or time.monotonic() >= deadline:
                raise LockedError(
                    f"{directory}: is in use by {other.describe()} ({alive}); two must not write to it together. "
                    "Wait for it, or stop it and start again"
                )
            if other.stopping and not waiting:
                print(f"{directory}: waits for {other.describe()}, which is stopping", flush=True)
                waiting = True
            time.sleep(0.5)
            continue
        path = directory / f"owner.{number + 1}.json"
        if not _create(path, _text(me)):
            time.sleep(0.2)  # another process was faster; a network file system may show it late
            continue
        for old in _numbers(directory):
            if old <= number:
                (directory / f"owner.{old}.json").unlink(missing_ok=True)
        lock = Lock(path, me, on_loss)
        if other and not other.released:
            print(f"{directory}: taken over from {other.describe()}, which is gone", flush=True)
            if not alone and (other.slurm_job_id or not same_machine(other, me)):
                time.sleep(FENCE_SECONDS)
        return lock


def last_owner(directory: Path) -> Owner | None:
    """The newest owner of a directory, alive or not; None when there never was one."""
    return _newest(directory)[1]


def live_owner(directory: Path) -> Owner | None:
    """The owner of a directory if it is alive; None otherwise."""
    number, owner = _newest(directory)
    alive = owner and why_alive(owner, this_process(), directory / f"owner.{number}.json")
    return owner if alive else None


def is_own_file(path: Path) -> bool:
    """Whether a file of a directory belongs to the lock."""
    return bool(_NAME.fullmatch(path.name))


def end_with_owner() -> None:
    """In a rank: end this process, from a thread, once its launcher does not own the run any more."""
    if path := os.environ.get(VARIABLE):
        threading.Thread(target=_end_when_succeeded, args=(Path(path),), daemon=True, name="fence").start()


def _end_when_succeeded(path: Path) -> None:
    while not _succeeded(path):
        time.sleep(POLL_SECONDS)
    print(f"{path}: another process owns this run now; this rank ends", file=sys.stderr, flush=True)
    os._exit(1)


def _succeeded(path: Path) -> bool:
    """Whether an owner file has a successor, or says that its process has ended. False while it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        numbers = _numbers(path.parent)
        own = int(path.name.split(".")[1])
        return bool(numbers) and (numbers[0] > own or bool(json.loads(path.read_text(encoding="utf-8"))["released"]))
    return False


def _numbers(directory: Path) -> list[int]:
    """Numbers of the owner files, highest first."""
    names = map(_NAME.fullmatch, os.listdir(directory) if directory.is_dir() else [])
    return sorted((int(name[1]) for name in names if name), reverse=True)


def _newest(directory: Path) -> tuple[int, Owner | None]:
    """Number and content of the newest file; 0 and None when there is none."""
    while numbers := _numbers(directory):
        path = directory / f"owner.{numbers[0]}.json"
        try:
            return numbers[0], Owner(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue  # its successor has just removed it
        except (ValueError, TypeError):
            raise LockedError(f"{path}: cannot be read as an owner; delete it if no process uses {directory}") from None
    return 0, None


def _create(path: Path, text: str) -> bool:
    """Create a file with its content, unless it exists. Returns whether this process did."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with naming(path):
        draft.write_text(text, encoding="utf-8")
    try:
        os.link(draft, path)
    except FileExistsError:
        # An NFS client that repeats a lost request finds its own link.
        return draft.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        try:  # a file system without hard links
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        draft.unlink(missing_ok=True)
    return True


def _text(owner: Owner) -> str:
    return json.dumps(asdict(owner), indent=1) + "\n"
