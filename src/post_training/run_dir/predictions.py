"""What was foretold of one training beside what it came to, in its run directory. Light; see the package for the shape."""

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
    """Copy what the preflight said of this stage; nothing where there was none, as with a training by hand."""
    told = _read(Path(task.runtime.get("preflight") or ""))
    run = task.directory.name
    if told is None or run not in told["trainings"]:
        return
    mine = told["trainings"][run]
    own = [
        check
        for check in told["checks"]
        if check["stage"] in ("", stage) and (not check["runs"] or set(check["runs"]) & set(mine["runs"]))
    ]
    facts = {"work": mine["work"], "predicted": mine["predicted"], "measured": None}
    write(task.directory, {"stage": stage, "checks": own, "run": run, **facts})


def end(task: Task, facts: dict[str, Any], lines: list[MetricsLine], checkpoint: Path) -> None:
    """Add what was measured.

    Args:
        task: the training.
        facts: of the last checkpoint's marker.
        lines: of `logs/metrics.jsonl`.
        checkpoint: the last one's folder.
    """
    told = of_run(task.directory)
    if told is None:
        return
    write(task.directory, {**told, "measured": told.get("work", {}) | measured(facts, lines, checkpoint)})


def measured(facts: dict[str, Any], lines: list[MetricsLine], checkpoint: Path) -> dict[str, Any]:
    """The keys of a prediction as they came to be; one that was not measured is left out."""
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
        "checkpoint_bytes": sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) or None,
        "checkpoints_bytes": sum(path.stat().st_size for path in checkpoint.parent.rglob("*") if path.is_file())
        or None,
        "world_size": ranks,
        "hardware": facts.get("device_name"),
    }
    return {key: value for key, value in found.items() if value is not None}


def write(directory: Path, told: dict[str, Any]) -> None:
    """`preflight.json` of a run or a probe."""
    write_atomically(directory / FILE, json.dumps(told, indent=1) + "\n")


def of_run(directory: Path) -> dict[str, Any] | None:
    """`preflight.json` of a run; None where it had no preflight."""
    return _read(directory / FILE)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
