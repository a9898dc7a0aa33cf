"""Timeline of a training run: `logs/timeline.jsonl`, one line per event, over all its attempts.

    {"event": "start", "time": ..., "devices": 8, "job_id": "4711" or null, "submitted": ... or null}     by the launcher
    {"event": "train_begin", "time": ..., "step": 400, "lost_steps": 37, "lost_seconds": 61.5, "last_seen": ... or null}
    {"event": "first_step", "time": ..., "step": 401}
    {"event": "save", "time": ..., "step": 500, "seconds": 2.1}
    {"event": "end", "time": ..., "step": 1000, "why": "done" or the signal's name}

Times are seconds since the epoch. `start` is when the allocation began, or without Slurm the launcher. An attempt that was
killed has no `end`; the `train_begin` of the next one says when it last wrote a metric, and how far it was past its last complete checkpoint.
"""

import time
from pathlib import Path
from typing import Any

from post_training.core import json_lines
from post_training.run_dir import attempts


def path_of(directory: Path) -> Path:
    """The file of a run directory."""
    return directory / "logs" / "timeline.jsonl"


def note(directory: Path, event: str, **facts: Any) -> None:
    """Append an event; `time` is now unless it is given."""
    json_lines.append(path_of(directory), {"event": event, "time": round(time.time(), 3), **facts})


def note_start(directory: Path, launched: float, devices: int) -> None:
    """The launcher's event; `launched` is when its process began."""
    if (attempt := attempts.current(attempts.folder_of(directory))) is None:
        return note(directory, "start", time=launched, devices=devices, job_id=None, submitted=None)
    submitted = attempts.epoch_seconds(attempt.submitted)
    began = attempts.epoch_seconds(attempt.start) or launched
    return note(directory, "start", time=began, devices=devices, job_id=attempt.job_id, submitted=submitted)


def read(directory: Path) -> list[dict[str, Any]]:
    """All events, oldest first."""
    return list(json_lines.read(path_of(directory)))
