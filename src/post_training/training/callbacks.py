"""What a run reports while it trains: metrics, timeline and progress lines."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from post_training.core import json_lines
from post_training.core.format import duration
from post_training.run_dir import metrics, timeline
from post_training.training.measure import PeakMemory, TokenCounter


class MetricsCallback(TrainerCallback):
    """`logs/metrics.jsonl`: one JSON line a logged step, also over several attempts."""

    def __init__(self, path: Path, tokens: TokenCounter, peak: PeakMemory, steps_per_epoch: float) -> None:
        # Transformers counts all epochs, which follow one another, as one.
        self.path, self.tokens, self.peak, self.steps_per_epoch = path, tokens, peak, steps_per_epoch

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Append the line of this step, or of an evaluation; the summary at the end has no loss and is left out."""
        logs = kwargs["logs"]
        if "loss" not in logs and "eval_loss" not in logs:
            return
        peak = self.peak.since_last() if "loss" in logs else {}  # of all ranks
        if not state.is_world_process_zero:
            return
        # TRL's own token count starts at 0 again in every attempt; ours does not.
        others = {key: value for key, value in logs.items() if key not in ("num_tokens", "epoch")}
        epoch = round(state.global_step / self.steps_per_epoch, 4)
        if "eval_loss" in logs and self.tokens.in_logs:
            others["tokens"] = self.tokens.tokens  # as of the last log or checkpoint
        line = {"step": state.global_step, "epoch": epoch, **others, "seconds": round(self.tokens.seconds, 3)}
        json_lines.append(self.path, line | peak)


def cut_metrics(path: Path, step: int, seconds: float) -> dict[str, Any]:
    """Drop the lines after `step`, where `seconds` had been trained: a resumed run takes these steps again.

    Returns what the timeline keeps of them: `lost_steps`, `lost_seconds`, and when the last line was written, `last_seen`.
    """
    if not path.is_file():
        return {"lost_steps": 0, "lost_seconds": 0.0, "last_seen": None}
    seen, lines = path.stat().st_mtime, metrics.read(path)
    kept = [line for line in lines if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
    last = lines[-1] if len(lines) > len(kept) else {"step": step, "seconds": seconds}
    lost = {"lost_steps": last["step"] - step, "lost_seconds": round(max(0.0, last["seconds"] - seconds), 3)}
    return {**lost, "last_seen": round(seen, 3)}


class TimelineCallback(TrainerCallback):
    """Notes on rank 0 when this attempt was ready and when it had taken its first step; see run_dir/timeline.py."""

    def __init__(self, directory: Path, lost: dict[str, Any]) -> None:
        """`lost` is what `cut_metrics` has returned."""
        self.directory, self.lost = directory, lost
        self._stepped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The model is loaded, and steps begin."""
        timeline.note(self.directory, "train_begin", step=state.global_step, **self.lost)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Kernels are compiled and buffers allocated."""
        if not self._stepped:
            self._stepped = True
            timeline.note(self.directory, "first_step", step=state.global_step)


class ProgressCallback(TrainerCallback):
    """A plain line now and then, for a Slurm log as well as a terminal."""

    def __init__(self, name: str, tokens: TokenCounter, every_seconds: float = 5.0) -> None:
        self.name, self.tokens, self.every_seconds = name, tokens, every_seconds
        self._begun = (0, 0.0)
        self._printed = float("-inf")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Time left is estimated from this attempt's steps."""
        self._begun = (state.global_step, time.monotonic())

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print step, loss, speed and time left, unless the last line is younger than `every_seconds`."""
        logs = kwargs["logs"]
        now = time.monotonic()
        due = now - self._printed >= self.every_seconds or state.global_step >= state.max_steps
        if "loss" not in logs or not state.is_world_process_zero or not due:
            return
        self._printed = now
        step, begun = self._begun
        left = (now - begun) / max(state.global_step - step, 1) * (state.max_steps - state.global_step)
        speed = f"{self.tokens.tokens_per_second:,.0f} tokens/s"
        progress = f"step {state.global_step:,}/{state.max_steps:,}"
        print(f"{self.name}: {progress}, loss {logs['loss']:.4f}, {speed}, {duration(left)} left", flush=True)
