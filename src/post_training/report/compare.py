"""Several runs on one page: their settings, held-out measures of the last stage, the best run, spread over seeds, and curves."""

import json
import os
import statistics
from pathlib import Path
from typing import Any

from post_training.core.errors import UserError
from post_training.core.task import Task
from post_training.report import charts
from post_training.report.curves import TITLES
from post_training.report.page import write

# Metrics of the last stage whose curves are drawn, and whose ends are measures: those on held-out rows, and those in training.
_HELD_OUT = ("eval_rewards/accuracies",)
_TRAINING = ("rewards/accuracies",)
# Their scale is that of the objective: a higher beta alone makes a lower loss and a larger margin.
_OF_OBJECTIVE = ("eval_loss", "loss", "rewards/margins")
# What can differ between runs whose objective and data are the same.
_SAME_OBJECTIVE = ("training", "model")
# By which measure runs are ranked: the first of these on which they differ; others come before the last.
_PREFERENCES = ("preference accuracy", "exact match", "", "loss per token")
_ANSWERS = ("exact match", "", "loss per token", "preference accuracy")
# Curves of more runs are not read: those of a thousand would fill the memory.
_LINES = 100


def run(task: Task) -> None:
    """Write `report.html`, and its figures as `summary.json`, beside the manifest.

    The config's `runs` is a list of `[run name, {key: value}]`, and each input, by run name, that run's report.

    Raises UserError for a report without readable numbers.
    """
    results: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[str, Any]] = {}
    held_out: dict[str, dict[str, Any]] = {}
    drawn = (
        [*_OF_OBJECTIVE, *_HELD_OUT, *_TRAINING] if same_objective(task.config["runs"]) else [*_HELD_OUT, *_TRAINING]
    )
    for name, _ in task.config["runs"]:
        report = task.inputs[name]
        numbers = _numbers(report)
        page = os.path.relpath(report.parent / "report.html", task.directory)
        own = {
            title: row
            for row in numbers["measures"]
            if row["is_main"]
            for title in [f"{row['data']}: {row['measure']}"]
        }
        last = numbers["stages"][-1]
        found = {title: row["values"][last["name"]] for title, row in own.items() if last["name"] in row["values"]}
        for title in (title for title in found if title not in held_out):
            row = own[title]
            keys = ("measure", "share", "higher_is_better", "examples")
            held_out[title] = {key: row[key] for key in keys} | {"error": row["errors"].get(last["name"])}
        found |= {_title(metric): last["final"][metric] for metric in drawn if metric in last["final"]}
        results[name] = {"measures": found, "page": page, "totals": numbers["totals"], "model": numbers["model"]}
        if len(curves) < _LINES:
            curves[name] = last["curves"]
    preferences = last["facts"].get("method") != "sft"
    compared = compare(task.config["runs"], results, held_out, preferences)
    compared["name"] = task.directory.name.rpartition("-")[0]
    shown = compared["runs"][:_LINES]
    over, lines = charts.over_keys(compared), charts.of_runs(shown, curves, drawn)
    write(
        task,
        "compare.html.jinja",
        compared,
        shares=[_title(metric) for metric in (*_HELD_OUT, *_TRAINING)],
        charts=over | lines,
        over=list(over),
        curves=list(lines),
        lines=len(shown),
    )


def compare(
    runs: list[tuple[str, dict[str, Any]]],
    results: dict[str, dict[str, Any]],
    held_out: dict[str, dict[str, Any]] | None = None,
    preferences: bool = False,
) -> dict[str, Any]:
    """The numbers of the page.

    Args:
        runs: name and values of each run, a value for every key in which any two differ.
        results: run name -> `measures` (title -> number), `page` (where its own report is), `totals` and `model`.
        held_out: title of each held-out measure -> `measure`, `share`, `higher_is_better`, `examples` and `error`.
        preferences: whether the last stage learns from preferences.

    Returns `keys` (those that differ), `seeds` (those of them that are seeds), `measures` (titles, held-out ones first),
    `held_out`, `runs`, `groups`: runs that differ in seeds alone, with mean, sample standard deviation, minimum and maximum of each
    measure, and `best` (see `rank`).
    """
    held_out = held_out or {}
    keys = list(dict.fromkeys(key for _, values in runs for key in values))
    seeds = [key for key in keys if key.rpartition(".")[2] == "seed"]
    groups: dict[str, dict[str, Any]] = {}
    shown = []
    for name, values in runs:
        shared = {key: values.get(key) for key in keys if key not in seeds}
        group = json.dumps(shared, sort_keys=True)
        groups.setdefault(group, {"values": shared, "runs": []})["runs"].append(name)
        shown.append({"name": name, "values": values, "group": list(groups).index(group), **results[name]})
    measures = list(dict.fromkeys(title for one in shown for title in one["measures"]))
    for found in groups.values():
        own = [results[name]["measures"] for name in found["runs"]]
        found["spread"] = {title: _spread([one[title] for one in own if title in one]) for title in measures}
    best = rank(list(groups.values()), held_out, preferences)
    if best is not None:
        measures.remove(best["measure"])
        measures.insert(0, best["measure"])
    measures.sort(key=lambda title: title not in held_out)
    return {
        "keys": keys, "seeds": seeds, "measures": measures, "held_out": held_out, "runs": shown, "groups": list(groups.values()),
        "best": best,
    }  # fmt: skip


def rank(groups: list[dict[str, Any]], held_out: dict[str, dict[str, Any]], preferences: bool) -> dict[str, Any] | None:
    """The best runs by the first held-out measure that tells runs apart; None where none does.

    Returns `measure` (its title), `value` and `worst`, means over seeds, `groups` (numbers of the best ones) and `runs`.
    """
    order = _PREFERENCES if preferences else _ANSWERS

    def place(title: str) -> tuple[int, int]:
        kind = held_out[title]["measure"]
        return order.index(kind if kind in order else ""), -(held_out[title]["examples"] or 0)

    for title in sorted((t for t in held_out if held_out[t]["higher_is_better"] is not None), key=place):
        means = {number: g["spread"][title]["mean"] for number, g in enumerate(groups) if g["spread"].get(title)}
        if len(set(means.values())) > 1:
            pick, other = (max, min) if held_out[title]["higher_is_better"] else (min, max)
            value = pick(means.values())
            best = [number for number, mean in means.items() if mean == value]
            names = [name for number in best for name in groups[number]["runs"]]
            return {"measure": title, "value": value, "worst": other(means.values()), "groups": best, "runs": names}
    return None


def same_objective(runs: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether training losses compare: the runs differ in how they are optimised, not in the objective or the data."""
    keys = {key for _, values in runs for key in values}
    return all(key.endswith(".seed") or set(key.split(".")[:-1]) & set(_SAME_OBJECTIVE) for key in keys)


def _title(metric: str) -> str:
    return {"loss": "training loss, last tenth", "rewards/accuracies": "rewards/accuracies in training"}.get(
        metric, TITLES[metric]
    )


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    deviation = {"std": statistics.stdev(values)} if len(values) > 1 else {}
    return {"n": len(values), "mean": statistics.fmean(values), **deviation, "min": min(values), "max": max(values)}


def _numbers(report: Path) -> dict[str, Any]:
    """`summary.json` of a run's own page."""
    path = report.parent / "summary.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete {report} to make the run's page again") from None
