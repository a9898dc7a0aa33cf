"""A command with everything that it starts: seconds, and the most memory that the whole tree of processes had at once."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_EVERY_SECONDS = 0.1


@dataclass
class Measured:
    """What a command took."""

    seconds: float
    peak_bytes: int
    """Of proportional set size: pages that several processes share count once."""
    output: str


def measure(command: list[str], environment: dict[str, str] | None = None) -> Measured:
    """Run a command and watch it. A command that fails ends the benchmark with its output."""
    started = time.perf_counter()
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"benchmark-{os.getpid()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, _tree_bytes(process.pid))
            try:
                process.wait(_EVERY_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    seconds = time.perf_counter() - started
    text = log.read_text(errors="replace")
    log.unlink()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    return Measured(seconds, peak, text)


def _tree_bytes(root: int) -> int:
    try:
        tree = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(_proportional_bytes(process.pid) for process in tree)


def _proportional_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
