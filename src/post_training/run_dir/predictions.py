"""Predicted and measured cost of a training run: `preflight.json` in its directory, in the form of `post_training.preflight`."""

import json
import statistics
from pathlib import Path
from typing import Any

from post_training.core.fingerprint import write_atomically
from post_training.core.task import Task
from post_training.run_dir.metrics import MetricsLine

FILE = "preflight.json"
# The first steps compile and warm up.
_SETTLED = 0.1


def begin(task: Task, stage: str) -> None:
    """Copy the preflight's findings on this stage; does nothing without a preflight, as in a training by hand."""
    preflight = _read(Path(task.runtime.get("preflight") or ""))
    run = task.directory.name
    if preflight is None or run not in preflight["trainings"]:
        return
    mine = preflight["trainings"][run]
    own = [
        check
        for check in preflight["checks"]
        if check["stage"] in ("", stage) and (not check["runs"] or set(check["runs"]) & set(mine["runs"]))
    ]
    facts = {"work": mine["work"], "predicted": mine["predicted"], "measured": None}
    write(task.directory, {"stage": stage, "checks": own, "run": run, **facts})


def end(task: Task, facts: dict[str, Any], lines: list[MetricsLine], checkpoint: Path) -> None:
    """Add the measured cost.

    Args:
        task: the training.
        facts: of the last checkpoint's marker.
        lines: of `logs/metrics.jsonl`.
        checkpoint: the last one's folder.
    """
    if (record := of_run(task.directory)) is not None:
        cost = record.get("work", {}) | measured(facts, lines, checkpoint)
        write(task.directory, {**record, "measured": cost})


def measured(facts: dict[str, Any], lines: list[MetricsLine], checkpoint: Path) -> dict[str, Any]:
    """The keys of a prediction with their measured values; one that was not measured is left out."""
    ranks, seconds, tokens = facts.get("world_size") or 1, facts.get("seconds"), facts.get("tokens")
    steps = int(checkpoint.name.rpartition("-")[2])  # the last log may be some steps back
    rates = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
    settled = rates[int(len(rates) * _SETTLED) + (len(rates) > 1) :] or rates
    rate = statistics.median(settled) if settled else tokens / seconds if tokens and seconds else None
    on_gpu = facts.get("device_name") not in (None, "CPU")
    found = {
        "steps": steps,
        "tokens": tokens,
        "tokens_per_second": round(rate, 1) if rate else None,
        "step_seconds": round(tokens / steps / rate, 4) if rate and tokens and steps else None,
        "hours": round(seconds / 3600, 4) if seconds else None,
        "gpu_hours": round(seconds / 3600 * ranks, 4) if seconds and on_gpu else None,
        "peak_memory_bytes": facts.get("peak_memory_bytes"),
        "checkpoint_bytes": _size(checkpoint) or None,
        "checkpoints_bytes": _size(checkpoint.parent) or None,
        "world_size": ranks,
        "hardware": facts.get("device_name"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write(directory: Path, record: dict[str, Any]) -> None:
    """Write `preflight.json` of a run or a probe."""
    write_atomically(directory / FILE, json.dumps(record, indent=1) + "\n")


def of_run(directory: Path) -> dict[str, Any] | None:
    """`preflight.json` of a run; None where it had no preflight."""
    return _read(directory / FILE)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
