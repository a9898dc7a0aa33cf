"""One writer a run directory: who owns it, and whether that owner is still alive. Light.

Owners are numbered files, `owner.<n>.json`; the highest number is the owner. To take over from n is to
create n+1, which a file system lets exactly one process do (a hard link to a finished file, which is
atomic on NFS and Lustre too, where `flock` may succeed for everybody). The newest file is never
removed, so that a process which slept for an hour over its decision cannot create a number again.

An owner is dead when it has said so; when its process is gone, on its own machine; when its Slurm job is
gone; or, where neither can be seen, when its file has not been touched for STALE_SECONDS by the
file server's own clock. A job that Slurm starts again takes over from itself.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically

LOCKED = 75
"""Exit code of a launcher that found a live owner (sysexits' EX_TEMPFAIL)."""
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 300.0
_NAME = re.compile(r"owner\.(\d+)\.json")
_HIDDEN = "hidden"


class LockedError(UserError):
    """Another live start owns the run."""


@dataclass(frozen=True)
class Owner:
    """A process that trains a run, as its file says."""

    host: str
    pid: int
    process: str
    """What tells this process from a later one with the same id: boot, PID namespace, start time."""
    slurm_job_id: str | None
    since: str
    stopping: bool = False
    """It was asked to stop and will be gone soon."""
    released: bool = False

    def describe(self) -> str:
        """`process 4711 on node3 (Slurm job 1234), since 2026-11-25T22:00:00`."""
        job = f" (Slurm job {self.slurm_job_id})" if self.slurm_job_id else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


def this_process() -> Owner:
    """The owner that this process would be."""
    pid = os.getpid()
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Owner(socket.gethostname(), pid, _process(pid) or _HIDDEN, os.environ.get("SLURM_JOB_ID"), now)


class Lock:
    """A run directory that this process owns, kept fresh by a thread until `release`."""

    def __init__(self, path: Path, owner: Owner, on_loss: Callable[[], None]) -> None:
        self.path, self.owner, self._on_loss = path, owner, on_loss
        self.lost = False
        """Somebody has taken over, which happens only to a process that stood still for minutes."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._thread.start()

    def mark_stopping(self) -> None:
        """Tell the next start that waiting is worth while."""
        self._rewrite(replace(self.owner, stopping=True))

    def release(self) -> None:
        """The run has no owner any more."""
        self._ended.set()
        self._thread.join()
        self._rewrite(replace(self.owner, released=True))

    def _rewrite(self, owner: Owner) -> None:
        self.owner = owner
        with contextlib.suppress(OSError):  # a full disk must not hide what the run itself has to say
            write_atomically(self.path, _text(self.owner))

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            newest = _numbers(self.path.parent)
            if newest and newest[0] > _number(self.path):
                self.lost = True
                self._on_loss()
                return
            with contextlib.suppress(OSError):  # gone for a moment; staleness counts minutes
                os.utime(self.path)


@contextmanager
def owned(
    directory: Path,
    on_loss: Callable[[], None] = lambda: None,
    patience_seconds: float = 60.0,
    give_up: Callable[[], str | None] = lambda: None,
) -> Iterator[Lock]:
    """Own a run directory while the block runs.

    Args:
        directory: the run directory; made if it is missing.
        on_loss: called from another thread when the lock is `lost`; the ranks must end at once.
        patience_seconds: how long to wait for an owner that is stopping.
        give_up: asked before the lock is taken; a reason to leave it.

    Raises:
        LockedError: a live owner has it.
    """
    lock = take(directory, on_loss, patience_seconds, give_up)
    try:
        yield lock
    finally:
        lock.release()


def take(
    directory: Path,
    on_loss: Callable[[], None] = lambda: None,
    patience_seconds: float = 60.0,
    give_up: Callable[[], str | None] = lambda: None,
) -> Lock:
    """Become the owner, or say who is. See `owned`."""
    directory.mkdir(parents=True, exist_ok=True)
    me = this_process()
    deadline = time.monotonic() + patience_seconds
    waiting = False
    while True:
        reason = give_up()
        if reason:
            raise LockedError(f"{directory}: {reason}; nothing is done")
        number, other = _newest(directory)
        why_alive = _why_alive(other, me, directory / f"owner.{number}.json") if other else None
        if other and why_alive:
            if not other.stopping or time.monotonic() > deadline:
                raise LockedError(
                    f"{directory}: is being trained by {other.describe()} ({why_alive}); two must not train together. "
                    "Wait for it, or stop it and start again"
                )
            if not waiting:
                print(f"{directory}: waits for {other.describe()}, which is stopping", flush=True)
                waiting = True
            time.sleep(0.5)
            continue
        path = directory / f"owner.{number + 1}.json"
        if not _create(path, _text(me)):
            time.sleep(0.2)  # somebody was faster; a network file system may show it late
            continue
        if other and not other.released:
            print(f"{directory}: taken over from {other.describe()}, which is gone", flush=True)
        for old in _numbers(directory):
            if old <= number:
                (directory / f"owner.{old}.json").unlink(missing_ok=True)
        return Lock(path, me, on_loss)


def owner_of(directory: Path) -> Owner | None:
    """The newest owner of a run directory, alive or not; None when there never was one."""
    return _newest(directory)[1]


def live_owner(directory: Path) -> Owner | None:
    """The owner of a run directory if it is alive; None otherwise."""
    number, owner = _newest(directory)
    if owner is None or _why_alive(owner, this_process(), directory / f"owner.{number}.json") is None:
        return None
    return owner


def is_own_file(path: Path) -> bool:
    """Whether a file of a run directory belongs to the lock."""
    return bool(_NAME.fullmatch(path.name))


def _why_alive(owner: Owner, me: Owner, path: Path) -> str | None:
    """The reason to take an owner for alive, or None."""
    if owner.released:
        return None
    here = owner.process.rpartition(" ")[0] == me.process.rpartition(" ")[0]
    if here and _process(owner.pid) == owner.process:
        return "its process runs"
    if owner.slurm_job_id is not None:
        if owner.slurm_job_id == me.slurm_job_id:
            return None  # Slurm started the job again
        state = _slurm_state(owner.slurm_job_id)
        if state is not None:
            # Also when the process here is gone: its ranks on other nodes live as long as the job.
            return f"its job is {state.lower()}" if state else None
    if here and _process(owner.pid) != _HIDDEN:
        return None
    age = _age(path)
    return f"its last sign of life is {age:.0f} s old" if age < STALE_SECONDS else None


def _slurm_state(job: str) -> str | None:
    """State of a job in the queue, pending after a requeue included; empty when it has left the queue; None if unknown."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return "" if "Invalid job id" in done.stderr else None
    return (done.stdout.split() or [""])[0]


def _process(pid: int) -> str | None:
    """Boot, PID namespace and start time of a process; None when it is gone or a zombie; _HIDDEN when it may not be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            return _HIDDEN
        return _HIDDEN
    return None if fields[0] == "Z" else f"{boot} {namespace} {fields[19]}"


def _numbers(directory: Path) -> list[int]:
    """Numbers of the owner files, highest first."""
    return sorted((_number(path) for path in directory.glob("owner.*.json") if is_own_file(path)), reverse=True)


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1])


def _newest(directory: Path) -> tuple[int, Owner | None]:
    """Number and content of the newest file; 0 and None when there is none."""
    while True:
        numbers = _numbers(directory) if directory.is_dir() else []
        if not numbers:
            return 0, None
        path = directory / f"owner.{numbers[0]}.json"
        try:
            return numbers[0], Owner(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue  # its successor has just removed it
        except (ValueError, TypeError):
            raise LockedError(
                f"{path}: cannot be read as the run's owner; delete it if nobody trains this run"
            ) from None


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of the server that holds it."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    probe.touch()
    try:
        return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
    finally:
        probe.unlink()


def _create(path: Path, text: str) -> bool:
    """Create a file with its content, unless it exists. Says whether this process did."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    draft.write_text(text, encoding="utf-8")
    try:
        os.link(draft, path)
    except FileExistsError:
        # An NFS client that repeats a lost request finds its own link.
        return draft.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        return _create_exclusively(path, text)  # a file system without hard links
    finally:
        draft.unlink(missing_ok=True)
    return True


def _create_exclusively(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _text(owner: Owner) -> str:
    return json.dumps(asdict(owner), indent=1) + "\n"
