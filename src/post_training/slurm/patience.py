"""Slurm may be away: its controller restarts, is busy, or cannot be reached. That is waited for, and counts as no failure."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from post_training.core.errors import UserError

Answer = TypeVar("Answer")
_LONGEST_PAUSE_SECONDS = 30.0
_LINE_SECONDS = 60.0


class AwayError(UserError):
    """Slurm gives no answer now. What it was asked to do, it may have done, or still do."""


def say(line: str) -> None:
    """A line among Snakemake's own; in a job, on stderr."""
    snakemake = logging.getLogger("snakemake.logging")
    if snakemake.hasHandlers():
        snakemake.info(line)
    else:
        print(line, file=sys.stderr, flush=True)


class Patience:
    """Asks Slurm until it answers, for `slurm.wait_seconds` at most."""

    def __init__(self, seconds: float, stopping: threading.Event | None = None) -> None:
        """Args: how long an absence may last, and what ends the wait early."""
        self.seconds, self._stopping = seconds, stopping or threading.Event()

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The first answer of a function that raises AwayError while there is none; one line a minute meanwhile.

        Raises:
            UserError: after too long, or when snakemake is interrupted.
        """
        began = time.monotonic()
        announced, pause = -_LINE_SECONDS, 1.0
        while True:
            try:
                return question()
            except AwayError as error:
                waited = time.monotonic() - began
                if waited >= self.seconds:
                    raise UserError(
                        f"Slurm has not answered for {waited:.0f} s ({error}); slurm.wait_seconds is {self.seconds:.0f}. "
                        "Jobs in the queue stay there; the next call of snakemake finds them"
                    ) from None
                if waited - announced >= _LINE_SECONDS:
                    announced = waited
                    say(f"Slurm does not answer ({error}); waited {waited:.0f} of {self.seconds:.0f} s")
                self.pause(min(pause, self.seconds - waited))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def pause(self, seconds: float) -> None:
        """Sleep. Raises UserError when snakemake is interrupted."""
        if self._stopping.wait(seconds):
            raise UserError("not waited for Slurm any longer, because snakemake was interrupted")
