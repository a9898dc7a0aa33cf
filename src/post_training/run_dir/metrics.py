"""`logs/metrics.jsonl` of a run: one JSON line per logged optimizer step, and per evaluation, over all attempts."""

from pathlib import Path
from typing import TypedDict, cast

from post_training.core import json_lines


class MetricsLine(TypedDict, total=False):
    """One logged step; the method's own metrics (`rewards/margins`, `mean_token_accuracy`, ...) come beside these."""

    step: int
    epoch: float
    loss: float
    eval_loss: float
    """Of held-out rows, on a line of its own; for pairs with `eval_rewards/accuracies`, `eval_rewards/margins`, ..."""
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    seconds: float
    """Training time up to this step, without steps lost to restarts."""
    peak_memory_bytes: int


def path_of(directory: Path) -> Path:
    """The metrics file of a run directory."""
    return directory / "logs" / "metrics.jsonl"


def read(path: Path, tail_bytes: int | None = None) -> list[MetricsLine]:
    """The lines of a metrics file, of its last `tail_bytes` alone where given; lines cut off at either end are left out."""
    return [
        cast(MetricsLine, line)
        for line in json_lines.read(path, tail_bytes)
        if isinstance(line, dict) and "step" in line
    ]
