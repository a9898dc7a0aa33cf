"""The curves of one training, from its `logs/metrics.jsonl`."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

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


def curves(lines: Sequence[Mapping[str, Any]], predicted: dict[str, Any], devices: int) -> dict[str, Curve]:
    """Metric -> `title`, `values`, and for each of AXES that the run has counted as many places on it.

    A curve of more than 1,000 points keeps the least and the greatest of each of 500 stretches, so that a spike stays.

    Args:
        lines: of `logs/metrics.jsonl`.
        predicted: what preflight foretold, for the utilisation.
        devices: that trained side by side.
    """
    peak = predicted.get("device_peak_flops")
    if peak:
        flops = predicted["flops_per_token"] / (peak * devices)
        lines = [
            {**line, "mfu": line["tokens_per_second"] * flops} if line.get("tokens_per_second") else line
            for line in lines
        ]
    return {metric: curve for metric, title in TITLES.items() if (curve := _curve(lines, metric, title))}


def final(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metric -> where it ended: the last value, of the noisy loss the mean over the last tenth of its lines."""
    found = {}
    for metric in TITLES:
        values = [line[metric] for line in lines if _is_number(line.get(metric))]
        if values:
            found[metric] = fmean(values[-max(1, len(values) // 10) :]) if metric == "loss" else values[-1]
    return found


def marks(lines: Sequence[Mapping[str, Any]], starts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a run went on after it had ended: a place on each of AXES, and how it had ended."""
    found = []
    for before, after in pairwise(starts):
        if after["step"] is None:
            continue
        last: dict[str, Any] = next((line for line in reversed(lines) if line["step"] <= after["step"]), {})
        place = {axis: last.get(axis) or 0 for axis in AXES} | {"step": after["step"]}
        found.append({**place, "why": before["why"]})
    return found


def _curve(lines: Sequence[Mapping[str, Any]], metric: str, title: str) -> Curve | None:
    own = [line for line in lines if _is_number(line.get(metric))]
    if not own:
        return None
    kept = _thinned(np.array([line[metric] for line in own], dtype=float))
    told = [own[place] for place in kept]
    places = {axis: [line[axis] for line in told] for axis in AXES if all(axis in line for line in told)}
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


def _is_number(value: Any) -> bool:
    """A float16 run may log an infinite gradient norm, which JSON has no word for."""
    return isinstance(value, int | float) and math.isfinite(value)
