"""Processes that live and die together: started, monitored, signalled, ended."""

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

# After the first failure the others have this long to report why they fail too. No longer: the usual one
# hangs in a collective, which no signal ends, and each second is a second of every device.
GRACE_SECONDS = 1.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Ended:
    """How a group of processes ended."""

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
    """Start all, wait for all. When one fails, or `abandoned` gives a reason, all others are killed.

    Args:
        commands: one per process; with several, each line of output is prefixed by its rank.
        environments: the complete environment of each.
        request: signals to this process, which are passed on to all.
        forwarded_as: the signal to send for one received.
        asked: called once, when the first signal is passed on.
        abandoned: called all the time; a reason to kill everything at once.
        log: file that takes all output; None = it goes where this process's goes.
    """
    processes: list[subprocess.Popen[str]] = []
    relays: list[threading.Thread] = []
    try:
        # Own sessions: a Ctrl-C reaches the ranks through us alone. Signals wait until a rank listens.
        with held(), open(log or os.devnull, "a") as file:
            sink = file if log else subprocess.PIPE
            for command, environment in zip(commands, environments, strict=True):
                processes.append(subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, text=True,
                    errors="replace", start_new_session=True,
                ))  # fmt: skip
        for rank, process in enumerate(processes):
            prefix = f"[rank {rank}] " if len(commands) > 1 else ""
            for source, output in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                if source is not None:
                    relays.append(threading.Thread(target=_relay, args=(source, output, prefix), daemon=True))
                    relays[-1].start()
        passed_on = 0
        while True:
            codes = [process.poll() for process in processes]
            # Of those that have ended at once, the one that was killed: an error may be what another's death has caused.
            failed = min(
                (rank for rank, code in enumerate(codes) if code), key=lambda rank: (codes[rank] or 0) > 0, default=None
            )
            if failed is not None:
                deadline = time.monotonic() + GRACE_SECONDS
                while time.monotonic() < deadline and any(process.poll() is None for process in processes):
                    time.sleep(_POLL_SECONDS)
                return Ended(failed, codes[failed] or 1)
            if all(code == 0 for code in codes):
                return Ended()
            if reason := abandoned():
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
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for process in processes:
            process.wait()
        for relay in relays:
            relay.join(timeout=2)


def _relay(source: IO[str], sink: TextIO, prefix: str) -> None:
    with source:
        for line in source:
            write(sink, prefix + line)


def say(line: str) -> None:
    """Print a line on stderr, if it still has a reader."""
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
