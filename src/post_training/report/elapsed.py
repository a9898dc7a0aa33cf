"""Where the time of a training went, by its `logs/timeline.jsonl`: queue, start-up, first step, steps, saving, restarts."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from post_training.run_dir import timeline

# Part of the whole -> what it is called on the page, in the order in which they happen.
PARTS = {
    "queue_seconds": "in the queue",
    "start_up_seconds": "start-up",
    "first_step_seconds": "first step",
    "training_seconds": "training",
    "saving_seconds": "saving",
    "repeated_seconds": "lost to restarts",
}


@dataclass
class Start:
    """One start of a run; what is not known counts as 0."""

    step: int | None = None
    """It went on from here; None when it ended before."""
    end_step: int | None = None
    why: str = "killed"
    """`done`, the signal at which it saved and stopped, or `killed`."""
    job_id: str | None = None
    devices: int = 1
    queue_seconds: float = 0.0
    """From its submission, or under Slurm from the end of the start before, to its allocation."""
    start_up_seconds: float = 0.0
    """To where the steps begin: libraries, model, checkpoint."""
    first_step_seconds: float = 0.0
    training_seconds: float = 0.0
    """In the other steps, without saving, and without those that the next start had to take again."""
    saving_seconds: float = 0.0
    repeated_seconds: float = 0.0
    """In steps that were not saved when it ended."""
    lost_steps: int = 0


def elapsed(directory: Path) -> dict[str, Any]:
    """What the starts of a run came to.

    Returns `starts` (a dict each, as `Start`), the sum of each of PARTS over them, and
    `device_seconds_before_first_step`: seconds times devices from allocation to the first step, of all starts. Empty for a run without a timeline.
    """
    starts = _starts(timeline.read(directory))
    if not starts:
        return {}
    sums = {part: round(sum(getattr(start, part) for start in starts), 3) for part in PARTS}
    waited = sum(start.start_up_seconds * start.devices for start in starts)
    return {
        "starts": [asdict(start) for start in starts],
        **sums,
        "device_seconds_before_first_step": round(waited, 1),
    }


def _starts(events: list[dict[str, Any]]) -> list[Start]:
    """Each start's events, from one `start` to the next."""
    groups: list[list[dict[str, Any]]] = []
    for event in events:
        # Without a launcher, as in a training by hand, a start begins with its steps.
        known = [told["event"] for told in groups[-1]] if groups else []
        if event["event"] == "start" or not groups or (event["event"] == "train_begin" and "train_begin" in known):
            groups.append([])
        groups[-1].append(event)
    found: list[Start] = []
    left: float | None = None
    for number, group in enumerate(groups):
        after = next(
            (event for later in groups[number + 1 :] for event in later if event["event"] == "train_begin"), {}
        )
        start, left = _start({event["event"]: event for event in group}, group, after, left)
        found.append(start)
    return found


def _start(
    told: dict[str, dict[str, Any]], group: list[dict[str, Any]], after: dict[str, Any], left: float | None
) -> tuple[Start, float]:
    """A start by its events and the next `train_begin`, and when it ended; `left` is when the one before did."""
    began = group[0]["time"]
    ready = told.get("train_begin", {}).get("time")
    start = Start(step=told.get("train_begin", {}).get("step"), job_id=told.get("start", {}).get("job_id"))
    start.devices = told.get("start", {}).get("devices", 1)
    queued_from = told.get("start", {}).get("submitted") or (left if start.job_id else None)
    start.queue_seconds = max(0.0, began - queued_from) if queued_from else 0.0
    last = max(event["time"] for event in group)
    if "end" in told:
        start.end_step, start.why = told["end"]["step"], told["end"]["why"]
    elif ready is not None and after.get("last_seen"):
        last = max(last, after["last_seen"])
    if ready is None:  # ended before its first step
        start.start_up_seconds = last - began
        return start, last
    start.start_up_seconds = ready - began
    stepped = told.get("first_step", {}).get("time", last)
    start.first_step_seconds = stepped - ready
    start.saving_seconds = sum(event["seconds"] for event in group if event["event"] == "save")
    if "end" not in told:
        start.lost_steps, start.repeated_seconds = after.get("lost_steps", 0), after.get("lost_seconds", 0.0)
    spent = last - stepped - start.saving_seconds
    start.repeated_seconds = min(start.repeated_seconds, max(0.0, spent))
    start.training_seconds = max(0.0, spent - start.repeated_seconds)
    return start, last
