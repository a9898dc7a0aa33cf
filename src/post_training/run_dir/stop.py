"""Stopping on request: the signals that ask for it, and `stopped.json`, which a stopped run leaves behind.

A rank's handler sets a flag. After each step all ranks compare flags, so that they save and end at the
same step; rank 0 then writes `stopped.json`, all ranks exit with 0, and the launcher's exit code says
which signal it was. A rank must not do so by its own exit code: srun ends the other ranks at the first
one that is not 0.

The codes are part of the launcher's interface; see post_training.launch.launcher.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from post_training.core.fingerprint import write_atomically

# The first of these that any rank got decides: a run that is warned of its time limit is to be requeued.
EXIT_CODES = {
    signal.SIGUSR1: 85,  # Slurm's warning before the time limit: requeue
    signal.SIGTERM: 143,
    signal.SIGINT: 130,
}
REQUEUE, STOPPED, INTERRUPTED = EXIT_CODES.values()
# Sent by the launcher through srun for TERM and INT, on which srun itself would end the step at once.
_THROUGH_SRUN = signal.SIGUSR2
SIGNALS = (*EXIT_CODES, _THROUGH_SRUN)
_FILE = "stopped.json"


class StopRequest:
    """The signals that this process has received since `listen()`. A second one changes nothing that is under way."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._before: dict[signal.Signals, Any] = {}
        self._at_once: Callable[[signal.Signals], None] | None = None

    def listen(self) -> None:
        """Install the handlers, and unblock the signals that were blocked since the process was started (see `held`)."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def __enter__(self) -> "StopRequest":
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received.append(signal.SIGTERM if number == _THROUGH_SRUN else signal.Signals(number))
        if self._at_once and self.wanted:
            self._at_once(self.wanted)

    def act_at_once(self, action: Callable[[signal.Signals], None]) -> None:
        """For work that has nothing to save: do this at the first signal, or now if it has come already."""
        self._at_once = action
        if self.wanted:
            action(self.wanted)

    @property
    def wanted(self) -> signal.Signals | None:
        """The signal that decides, if any has come."""
        return decisive(self.received)


REQUEST = StopRequest()
"""This process's."""


def decisive(received: Collection[int]) -> signal.Signals | None:
    """The first of EXIT_CODES among some signals or their numbers."""
    return next((number for number in EXIT_CODES if number in received), None)


@contextmanager
def held() -> Iterator[None]:
    """Signals wait while a process is started, and in the new process until it listens: none is lost or kills it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class Stopped:
    """The content of `stopped.json`."""

    signal: signal.Signals
    step: int | None
    """Last step that is saved; None where nothing has to be saved at the end."""

    def describe(self) -> str:
        """`stopped by SIGUSR1 after step 12`."""
        return f"stopped by {self.signal.name}" + (f" after step {self.step:,}" if self.step is not None else "")

    @property
    def exit_code(self) -> int:
        """The launcher's."""
        return EXIT_CODES[self.signal]


def write_stopped(directory: Path, number: signal.Signals, step: int | None) -> None:
    """Record that the run ended on request, after the checkpoint of `step` was marked."""
    write_atomically(directory / _FILE, json.dumps({"signal": number.name, "step": step}) + "\n")


def read_stopped(directory: Path) -> Stopped | None:
    """None when the run did not end on request."""
    try:
        content = json.loads((directory / _FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Stopped(signal.Signals[content["signal"]], content["step"])


def clear_stop_marker(directory: Path) -> None:
    """A new attempt begins."""
    (directory / _FILE).unlink(missing_ok=True)


def through_srun(number: signal.Signals) -> signal.Signals:
    """The signal to send to srun so that the ranks receive `number`."""
    return number if number == signal.SIGUSR1 else _THROUGH_SRUN


def die_with_parent(expected: int) -> None:
    """Have the kernel kill this process when its parent dies; `expected` is the parent's process id.

    Orphans would train beside the next attempt. The setting survives an exec.
    """
    import ctypes

    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return  # not Linux
    if os.getppid() != expected:
        os._exit(1)  # it died before the call
