"""A line of progress now and then: readable in a terminal and in a log file."""

import sys
import time

from post_training.core.format import duration


class Progress:
    """Prints `transform: 120,000 rows, 41,000 rows/s, 0:12 left` at most every few seconds."""

    def __init__(self, what: str, unit: str, total: int | None = None, every_seconds: float = 5.0) -> None:
        self.what, self.unit, self.total, self.every_seconds = what, unit, total, every_seconds
        self.started = self.last = time.monotonic()

    def update(self, done: int) -> None:
        """Report that `done` units are done so far."""
        now = time.monotonic()
        if now - self.last < self.every_seconds:
            return
        self.last = now
        rate = done / (now - self.started)
        share = f" of {self.total:,}" if self.total else ""
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        left = f", {duration((self.total - done) / rate)} left" if self.total and rate else ""
        print(f"{self.what}: {done:,}{share} {self.unit}, {speed} {self.unit}/s{left}", file=sys.stderr, flush=True)
