"""The curves of one training, from its `logs/metrics.jsonl`."""

from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from post_training.preflight import FILE
from post_training.report.elapsed import elapsed
from post_training.report.reading import read_json, read_json_lines

# In this order on the page: metric in metrics.jsonl -> title.
TITLES = {
    "loss": "loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "rewards/chosen": "reward of the chosen",
    "rewards/rejected": "reward of the rejected",
    "mean_token_accuracy": "token accuracy",
    "entropy": "entropy (nats)",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens a second",
    "mfu": "model FLOPs utilisation",
    "peak_memory_bytes": "peak memory (bytes)",
}
AXES = ("step", "tokens", "seconds")
"""What a curve can be drawn over; `seconds` are those of training, without what was lost to restarts."""
_MOST_POINTS = 1000
Curve = dict[str, Any]


def curves(directory: Path) -> dict[str, Curve]:
    """Metric -> `title`, `values`, and for each of AXES as many places on it.

    A curve of more than 1,000 points keeps the least and the greatest of each of 500 stretches, so that a spike stays.
    """
    lines = read_json_lines(directory / "logs" / "metrics.jsonl")
    told = (read_json(directory / FILE) or {}).get("predicted") or {}
    peak = told.get("device_peak_flops")
    # How many devices there were stands with the start; restarts on other devices are rare enough to take the last.
    devices = next((start["devices"] for start in reversed(elapsed(directory).get("starts", []))), 1)
    for line in lines:
        if peak and line.get("tokens_per_second"):
            line["mfu"] = line["tokens_per_second"] * told["flops_per_token"] / (peak * devices)
    return {metric: curve for metric, title in TITLES.items() if (curve := _curve(lines, metric, title))}


def final(directory: Path) -> dict[str, float]:
    """Metric -> where it ended: the last value, of the noisy loss the mean over the last tenth of its lines."""
    lines = read_json_lines(directory / "logs" / "metrics.jsonl")
    found = {}
    for metric in TITLES:
        values = [line[metric] for line in lines if isinstance(line.get(metric), int | float)]
        if values:
            found[metric] = fmean(values[-max(1, len(values) // 10) :]) if metric == "loss" else values[-1]
    return found


def marks(directory: Path) -> list[dict[str, Any]]:
    """Where a run went on after it had ended: a place on each of AXES, and how it had ended."""
    lines = read_json_lines(directory / "logs" / "metrics.jsonl")
    found = []
    starts = elapsed(directory).get("starts", [])
    for before, after in pairwise(starts):
        if after["step"] is None:
            continue
        last: dict[str, Any] = next((line for line in reversed(lines) if line["step"] <= after["step"]), {})
        place = {axis: last.get(axis) or 0 for axis in AXES} | {"step": after["step"]}
        found.append({**place, "why": before["why"]})
    return found


def _curve(lines: list[dict[str, Any]], metric: str, title: str) -> Curve | None:
    own = [line for line in lines if isinstance(line.get(metric), int | float)]
    if not own:
        return None
    kept = _thinned(np.array([line[metric] for line in own], dtype=float))
    told = [own[place] for place in kept]
    places = {axis: [line.get(axis) for line in told] for axis in AXES}
    return {"title": title, "values": [line[metric] for line in told], **places}


def _thinned(values: np.ndarray) -> list[int]:
    """Numbers of the points to keep of float64 [n]."""
    if len(values) <= _MOST_POINTS:
        return list(range(len(values)))
    edges = np.linspace(0, len(values), _MOST_POINTS // 2 + 1).astype(int)
    kept = {0, len(values) - 1}
    for first, last in pairwise(edges):
        part = values[first:last]
        kept |= {int(first + np.argmin(part)), int(first + np.argmax(part))}
    return sorted(kept)
