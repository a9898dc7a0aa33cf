"""Processes that live and die together: started, watched, told to stop, ended. Light."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

from post_training.run_dir.stop import StopRequest, held

# After the first failure the others have this long to say why they fail too. No longer: the usual one
# hangs in a collective, which no signal ends, and each second is a second of every device.
GRACE_SECONDS = 1.0
_POLL_SECONDS = 0.05
SNAKEMAKE = "POST_TRAINING_SNAKEMAKE"
"""Process id of the Snakemake that started a job; set by the prefix of all shell commands."""


@dataclass(frozen=True)
class Ended:
    """How a group of processes came to its end."""

    first: int | None = None
    """Index of the first one that failed."""
    code: int = 0
    """Its exit code; negative for a signal."""


def run_together(
    commands: list[list[str]],
    environments: list[dict[str, str]],
    request: StopRequest,
    *,
    forwarded_as: Callable[[signal.Signals], signal.Signals] = signal.Signals,
    asked: Callable[[], None] = lambda: None,
    abandoned: Callable[[], str | None] = lambda: None,
    log: Path | None = None,
) -> Ended:
    """Start all, wait for all. When one fails, or the whole is abandoned, all others are killed.

    Args:
        commands: one a process; with several, each line of output is prefixed by its rank.
        environments: the whole environment of each.
        request: signals to this process, which are passed on to all.
        forwarded_as: the signal to send for one received.
        asked: called once, when the first signal is passed on.
        abandoned: asked all the time; a reason to kill everything at once.
        log: file that takes all output; None = it goes where this process's goes.
    """
    several = len(commands) > 1
    processes: list[subprocess.Popen[str]] = []
    try:
        # Own sessions: a Ctrl-C reaches the ranks through us alone. Signals wait until a rank listens.
        with held():
            for command, environment in zip(commands, environments, strict=True):
                processes.append(_start(command, environment, log))
        relays = [
            _relay(source, sink, f"[rank {rank}] " if several else "")
            for rank, process in enumerate(processes)
            for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
            if source is not None
        ]
        ended = _watch(processes, request, forwarded_as, asked, abandoned)
    finally:
        _kill(processes)
    for relay in relays:
        relay.join(timeout=2)
    return ended


def _start(command: list[str], environment: dict[str, str], log: Path | None) -> "subprocess.Popen[str]":
    with open(log or os.devnull, "a") as file:
        sink = file if log else subprocess.PIPE
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip


def _watch(
    processes: list["subprocess.Popen[str]"],
    request: StopRequest,
    forwarded_as: Callable[[signal.Signals], signal.Signals],
    asked: Callable[[], None],
    abandoned: Callable[[], str | None],
) -> Ended:
    passed_on = 0
    while True:
        codes = [process.poll() for process in processes]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            _wait(processes, GRACE_SECONDS)
            return Ended(failed, codes[failed] or 1)
        if all(code == 0 for code in codes):
            return Ended()
        reason = abandoned()
        if reason:
            say(reason)
            return Ended(0, 1)
        for number in request.received[passed_on:]:
            if passed_on == 0:
                asked()
            passed_on += 1
            for process in processes:
                if process.poll() is None:
                    process.send_signal(forwarded_as(number))
        time.sleep(_POLL_SECONDS)


def _wait(processes: list["subprocess.Popen[str]"], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(_POLL_SECONDS)


def _kill(processes: list["subprocess.Popen[str]"]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()


def _relay(source: IO[str], sink: TextIO, prefix: str) -> threading.Thread:
    def copy() -> None:
        for line in source:
            write(sink, prefix + line)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def say(line: str) -> None:
    """A line on stderr, if anybody still reads it."""
    write(sys.stderr, line + "\n")


def write(sink: TextIO, text: str) -> None:
    """Write and flush. When the reader has gone (`| head`, Ctrl-C on a pipeline) the text is lost, the run is not."""
    try:
        sink.write(text)
        sink.flush()
    except BrokenPipeError:
        # So that later prints, and Python at its exit, do not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sink.fileno())
    except OSError:
        return  # a full disk below `tee`


def snakemake_is_gone() -> str | None:
    """Why this run has no Snakemake any more that would hear of its end, if it was started by one.

    Killed with -9 it leaves its jobs running, and whoever starts it again means to go on from here.
    """
    told = os.environ.get(SNAKEMAKE)
    if told is None:
        return None
    try:
        words = Path(f"/proc/{told}/cmdline").read_bytes()
        alive = b"snakemake" in words  # a zombie has none
    except OSError:
        alive = False
    return None if alive else f"snakemake (process {told}), which started this run, is gone"
