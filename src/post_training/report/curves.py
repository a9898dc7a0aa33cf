"""The curves of one training, from its `logs/metrics.jsonl`."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

# In this order on the page: metric in metrics.jsonl -> title.
TITLES = {
    "loss": "loss", "rewards/accuracies": "rewards/accuracies", "rewards/margins": "rewards/margins",
    "rewards/chosen": "rewards/chosen", "rewards/rejected": "rewards/rejected",
    "accuracy": "accuracy of rewards", "margin": "margin of rewards", "mean_reward": "mean reward",
    "max_reward": "highest reward", "min_reward": "lowest reward",
    "mean_token_accuracy": "token accuracy", "entropy": "entropy (nats)", "grad_norm": "gradient norm",
    "learning_rate": "learning rate", "tokens_per_second": "tokens per second",
    "padding_share": "padding", "rank_imbalance": "most tokens of a rank / mean", "mfu": "model FLOPs utilisation (MFU)",
    "hfu": "hardware FLOPs utilisation (HFU)", "peak_memory_bytes": "peak memory (GiB)",
    "eval_loss": "held-out loss", "eval_rewards/accuracies": "held-out preference accuracy",
    "eval_rewards/margins": "held-out rewards/margins", "eval_accuracy": "held-out accuracy of rewards",
    "eval_margin": "held-out margin of rewards",
}  # fmt: skip
AXES = ("step", "tokens", "seconds")
"""The axes of a curve; `seconds` are those of training, without those lost to restarts."""
_MOST_POINTS = 1000
Lines = Sequence[Mapping[str, Any]]
Curve = dict[str, Any]


def curves(lines: Lines, predicted: dict[str, Any], devices: int) -> dict[str, Curve]:
    """Metric -> `title`, `values`, and the points' positions on each of AXES that the run has counted.

    A curve of more than 1,000 points keeps the minimum and maximum of each of 500 intervals, so that spikes stay.

    Args:
        lines: of `logs/metrics.jsonl`.
        predicted: the preflight's predictions, for the utilisation.
        devices: number that trained in parallel.
    """
    peak = predicted.get("device_peak_flops")
    names = {"mfu": "model_flops_per_token", "hfu": "flops_per_token"}
    shares = {name: predicted[key] / (peak * devices) for name, key in names.items() if peak and predicted.get(key)}
    lines = [
        {
            **line,
            **{n: line["tokens_per_second"] * share for n, share in shares.items() if line.get("tokens_per_second")},
        }
        for line in lines
    ]
    return {metric: curve for metric, title in TITLES.items() if (curve := _curve(lines, metric, title))}


def final(lines: Lines) -> dict[str, float]:
    """Metric -> its last value; for the noisy loss the mean over the last tenth of its lines."""
    found = {}
    for metric in TITLES:
        if values := [line[metric] for line in lines if _is_finite(line.get(metric))]:
            found[metric] = fmean(values[-max(1, len(values) // 10) :]) if metric == "loss" else values[-1]
    return found


def marks(lines: Lines, attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a run resumed: the position on each of AXES, and how the attempt before had ended."""
    found = []
    for before, after in pairwise(attempts):
        if after["step"] is not None:
            last: Mapping[str, Any] = next((line for line in reversed(lines) if line["step"] <= after["step"]), {})
            position = {axis: last.get(axis) or 0 for axis in AXES} | {"step": after["step"]}
            found.append({**position, "why": before["why"]})
    return found


def _curve(lines: Lines, metric: str, title: str) -> Curve | None:
    own = [line for line in lines if _is_finite(line.get(metric))]
    kept = [own[index] for index in _thinned([line[metric] for line in own])]
    positions = {axis: [line[axis] for line in kept] for axis in AXES if all(axis in line for line in kept)}
    return {"title": title, "values": [line[metric] for line in kept], **positions} if kept else None


def _thinned(values: list[float]) -> list[int]:
    """Indices of the points to keep."""
    if len(values) <= _MOST_POINTS:
        return list(range(len(values)))
    intervals = _MOST_POINTS // 2
    kept = {0, len(values) - 1}
    for first, end in pairwise(len(values) * edge // intervals for edge in range(intervals + 1)):
        kept |= {pick(range(first, end), key=values.__getitem__) for pick in (min, max)}
    return sorted(kept)


def _is_finite(value: Any) -> bool:
    """Whether JSON can hold it: a float16 run may log an infinite gradient norm."""
    return isinstance(value, int | float) and math.isfinite(value)
