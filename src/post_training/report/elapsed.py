"""Time of a training by phase, from its `logs/timeline.jsonl`: queue, start-up, first step, steps, saving, restarts."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from post_training.run_dir import timeline

# Field of an attempt -> title on the page, in the order in which they happen.
PARTS = {
    "queue_seconds": "in the queue", "start_up_seconds": "start-up", "first_step_seconds": "first step",
    "training_seconds": "training", "saving_seconds": "saving", "repeated_seconds": "lost to restarts",
}  # fmt: skip


@dataclass
class Attempt:
    """One attempt of a run; an unknown time counts as 0."""

    step: int | None = None
    """It resumed from this step; None when it ended before."""
    end_step: int | None = None
    why: str = "killed"
    """`done`, the signal at which it saved and stopped, or `killed`."""
    job_id: str | None = None
    devices: int = 1
    queue_seconds: float = 0.0
    """From its submission, or under Slurm from the end of the attempt before, to its allocation."""
    start_up_seconds: float = 0.0
    """Until the steps begin: libraries, model, checkpoint."""
    first_step_seconds: float = 0.0
    training_seconds: float = 0.0
    """In the other steps, without saving, and without those that the next attempt had to repeat."""
    saving_seconds: float = 0.0
    repeated_seconds: float = 0.0
    """In steps that were not saved when it ended."""
    lost_steps: int = 0


def elapsed(directory: Path) -> dict[str, Any]:
    """Where the time of a run went.

    Returns `starts` (its attempts, a dict each), the sum of each of PARTS over them, and
    `device_seconds_before_first_step`: seconds times devices from allocation to the first step, of all attempts. Empty
    for a run without a timeline.
    """
    attempts = _attempts(timeline.read(directory))
    if not attempts:
        return {}
    waited = sum(attempt.start_up_seconds * attempt.devices for attempt in attempts)
    return {
        "starts": [asdict(attempt) for attempt in attempts],
        **{part: round(sum(getattr(attempt, part) for attempt in attempts), 3) for part in PARTS},
        "device_seconds_before_first_step": round(waited, 1),
    }


def _attempts(events: list[dict[str, Any]]) -> list[Attempt]:
    groups: list[dict[str, dict[str, Any]]] = []  # of each attempt the last event of each name
    saving: list[float] = []
    for event in events:
        # Without a launcher, as in a training by hand, an attempt begins with its steps.
        name = event["event"]
        if name == "start" or not groups or (name == "train_begin" and "train_begin" in groups[-1]):
            groups.append({})
            saving.append(0.0)
        groups[-1][name] = event
        saving[-1] += event["seconds"] if name == "save" else 0.0
    found: list[Attempt] = []
    ended: float | None = None
    for number, group in enumerate(groups):
        resumed = next((later["train_begin"] for later in groups[number + 1 :] if "train_begin" in later), {})
        attempt, ended = _attempt(group, saving[number], resumed, ended)
        found.append(attempt)
    return found


def _attempt(
    events: dict[str, dict[str, Any]], saving: float, resumed: dict[str, Any], ended_before: float | None
) -> tuple[Attempt, float]:
    """An attempt and when it ended, from its events and the next attempt's `train_begin`."""
    start, begin, end = (events.get(name, {}) for name in ("start", "train_begin", "end"))
    times = [event["time"] for event in events.values()]
    began, last, ready = min(times), max(times), begin.get("time")
    attempt = Attempt(step=begin.get("step"), job_id=start.get("job_id"), devices=start.get("devices", 1))
    queued = start.get("submitted") or (ended_before if attempt.job_id else None)
    attempt.queue_seconds = max(0.0, began - queued) if queued else 0.0
    if end:
        attempt.end_step, attempt.why = end["step"], end["why"]
    elif ready is not None:
        last = max(last, resumed.get("last_seen") or last)
    if ready is None:  # ended before its first step
        attempt.start_up_seconds = last - began
        return attempt, last
    attempt.start_up_seconds = ready - began
    stepped = events.get("first_step", {}).get("time", last)
    attempt.first_step_seconds, attempt.saving_seconds = stepped - ready, saving
    spent = last - stepped - saving
    if not end:
        attempt.lost_steps = resumed.get("lost_steps", 0)
        attempt.repeated_seconds = min(resumed.get("lost_seconds", 0.0), max(0.0, spent))
    attempt.training_seconds = max(0.0, spent - attempt.repeated_seconds)
    return attempt, last
