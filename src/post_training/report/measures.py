"""Held-out measures of a run's models: what they are called, how they are written, and which way is better."""

import math
from typing import Any

from post_training.report.summary import MEASURES

# Measure of an evaluation -> title, whether it is a share, whether higher is better (None: neither).
_KNOWN: dict[str, tuple[str, bool, bool | None]] = {
    "exact_match": ("exact match", True, True),
    "reward": ("mean reward", False, True),
    "accuracy": ("preference accuracy", True, True),
    "margin": ("margin (nats)", False, True),
    "stopped": ("ended with a stop token", True, None),
    "loss": ("loss per token", False, False),
}
Row = dict[str, Any]
"""`data`, `measure`, `examples`, `share`, `higher_is_better`, `is_main`, `values` (model -> number), `errors` (model -> standard
error), and `best`, the models with the best value."""


def rows(numbers: dict[str, Any]) -> list[Row]:
    """Every measure of `evaluations` and `lm_eval` with each model's value, in the order of the datasets and tasks."""
    found = []
    for data, models in numbers["evaluations"].items():
        first: dict[str, Any] = next(iter(models.values()))
        for measure in (measure for measure in _KNOWN if first.get(measure) is not None):
            title, share, higher = _KNOWN[measure]
            values = {model: own[measure] for model, own in models.items() if own.get(measure) is not None}
            errors = {model: _error(value, models[model]["rows"]) for model, value in values.items()} if share else {}
            main = measure == MEASURES[first["kind"]][0]
            found.append(_row(data, title, first["rows"], share, higher, main, values, errors))
    for task, models in numbers["lm_eval"].items():
        for number, measure in enumerate(dict.fromkeys(measure for own in models.values() for measure in own)):
            own_results = {model: own[measure] for model, own in models.items() if measure in own}
            values = {m: result["value"] for m, result in own_results.items() if result["value"] is not None}
            errors = {m: own_results[m]["stderr"] for m in values if own_results[m].get("stderr") is not None}
            higher = next(iter(own_results.values())).get("higher_is_better")
            found.append(_row(task, measure, None, False, higher, number == 0, values, errors))
    return found


def headline(measured: list[Row], models: list[str]) -> dict[str, Any]:
    """What the last model gained: `better`, `worse` and `same` than the starting one, and `lost` since the model before it.

    Each is a list of `data: measure`, of the main measures that say which way is better.
    """
    found: dict[str, Any] = {"better": [], "worse": [], "same": [], "lost": [], "before": None}
    last, before = models[-1], models[-2]
    for row in (row for row in measured if row["is_main"]):
        name = f"{row['data']}: {row['measure']}"
        if (change := gain(row, "base", last)) is not None:
            found["better" if change > 0 else "worse" if change < 0 else "same"].append(name)
        if before != "base" and (gain(row, before, last) or 0) < 0:
            found["lost"].append(name)
            found["before"] = before
    return found


def gain(row: Row, before: str, after: str) -> float | None:
    """By how much `after` is better than `before`; negative where it is worse, None where that is not known."""
    if before not in row["values"] or after not in row["values"] or row["higher_is_better"] is None:
        return None
    change = row["values"][after] - row["values"][before]
    return float(change if row["higher_is_better"] else -change)


def score(value: float | None, share: bool = False) -> str:
    """`98.0 %` of a share, four digits of anything else, a dash for None."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if share else f"{value:,.4g}"


def _row(
    data: str, measure: str, examples: int | None, share: bool, higher: bool | None, main: bool, values: dict[str, float],
    errors: dict[str, float],
) -> Row:  # fmt: skip
    best = (max if higher else min)(values.values()) if values and higher is not None else None
    return {
        "data": data, "measure": measure, "examples": examples, "share": share, "higher_is_better": higher, "is_main": main,
        "values": values, "errors": errors, "best": [model for model, value in values.items() if value == best],
    }  # fmt: skip


def _error(share: float, examples: int) -> float:
    """Standard error of a share."""
    return math.sqrt(share * (1 - share) / examples) if examples else 0.0
