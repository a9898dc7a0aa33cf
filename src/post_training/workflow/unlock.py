"""The lock that a killed Snakemake leaves in its working directory. Light.

Snakemake keeps no process with its lock, so after `kill -9`, a lost session or a crash of the machine every
start asks for `--unlock`, whether or not another one still runs. This file remembers who holds it, and
takes it away when that process, on this host, is gone. What two live calls may not do together is
guarded stage by stage; see training/lock.py and slurm/executor.py.
"""

import contextlib
import json
import socket
import sys
from pathlib import Path

import psutil

from post_training.core.fingerprint import write_atomically

_FOLDER = Path(".snakemake")
_RECORD = "post-training-main.json"


def release_stale_lock(folder: Path = _FOLDER) -> None:
    """Called by a person's start, before Snakemake looks for its lock."""
    record = folder / _RECORD
    holder = None
    with contextlib.suppress(OSError, ValueError):
        holder = json.loads(record.read_text(encoding="utf-8"))
    if holder and (holder["host"] != socket.gethostname() or _lives(holder["pid"], holder["started"])):
        return  # not ours to judge, or in use: Snakemake says what to do
    locks = [path for path in folder.glob("locks/*") if path.is_file()]
    if holder and locks:
        print(f"snakemake (process {holder['pid']}) of an earlier call is gone; its lock is released", file=sys.stderr)
        for path in locks:
            path.unlink(missing_ok=True)
    if holder or not locks:
        me = psutil.Process()
        told = {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time()}
        write_atomically(record, json.dumps(told) + "\n")


def _lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
