"""A rank ends itself when its job is no longer the one that may train the run. Light.

A node that Slurm has given up may still be running: its ranks would train, and save, beside those of
the job that Slurm started again elsewhere. No signal reaches them there, but the file system does.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

VARIABLE = "POST_TRAINING_SEGMENT"
"""`<token>:<path of segment.json>`, set for every process of a segment."""
POLL_SECONDS = 3.0
WAIT_SECONDS = 15.0
"""How long a new segment waits, after one that ended without a word, for that one's ranks to notice."""
_STRIKES = 2


def watch() -> None:
    """Begin to watch, in a thread; does nothing outside of a Slurm job's segment."""
    told = os.environ.get(VARIABLE)
    if told:
        token, _, path = told.partition(":")
        threading.Thread(target=_watch, args=(token, Path(path)), daemon=True, name="fence").start()


def holds(token: str, path: Path) -> bool:
    """Whether the file still names this segment."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(f"{found['job_id']}.{found['restart']}" == token)


def _watch(token: str, path: Path) -> None:
    strikes = 0
    while True:
        time.sleep(POLL_SECONDS)
        # Twice: a file server may be away for a moment.
        strikes = 0 if holds(token, path) else strikes + 1
        if strikes >= _STRIKES:
            print(f"{path}: another job owns this run now; this rank ends", file=sys.stderr, flush=True)
            os._exit(1)
