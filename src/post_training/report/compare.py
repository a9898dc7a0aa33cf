"""Several runs on one page: what each was given, what its last stage reached, the spread over seeds, curves over one another."""

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
from post_training.report.summary import MEASURES

# Of the last stage's curves: their ends are measures, and they are drawn.
_METRICS = ("loss", "rewards/accuracies", "rewards/margins")
_LINES = 100


def run(task: Task) -> None:
    """Write `report.html`, and its figures as `summary.json`, beside the manifest.

    The config's `runs` is a list of `[run name, {key: value}]`, and each input, by run name, that run's report.
    """
    results: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[str, Any]] = {}
    for name, _ in task.config["runs"]:
        report = task.inputs[name]
        told = _numbers(report)
        page = os.path.relpath(report.parent / "report.html", task.directory)
        results[name] = {"measures": _measures(told), "page": page, "totals": told["totals"]}
        if len(curves) < _LINES:  # those of a thousand runs would fill the memory, and no more are drawn
            curves[name] = told["stages"][-1]["curves"]
    numbers = compare(task.config["runs"], results)
    shown = numbers["runs"][:_LINES]
    write(task, "compare.html.jinja", numbers, charts=charts.of_runs(shown, curves, _METRICS), lines=len(shown))


def compare(runs: list[tuple[str, dict[str, Any]]], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the page.

    Args:
        runs: name and values of each run, a value for every key in which any two differ.
        results: run name -> `measures` (title -> number), `page` (where its own report is) and `totals`.

    Returns `keys` (those that differ), `seeds` (those of them that are seeds), `measures` (titles), `runs`, and
    `groups`: runs that differ in seeds alone, with mean, sample standard deviation, least and greatest of each measure.
    """
    keys = list(dict.fromkeys(key for _, values in runs for key in values))
    seeds = [key for key in keys if key.rpartition(".")[2] == "seed"]
    groups: dict[str, dict[str, Any]] = {}
    rows = []
    for name, values in runs:
        rows.append({"name": name, "values": values, **{k: results[name][k] for k in ("measures", "page", "totals")}})
        shared = {key: values.get(key) for key in keys if key not in seeds}
        group = groups.setdefault(json.dumps(shared, sort_keys=True), {"values": shared, "runs": []})
        group["runs"].append(name)
        rows[-1]["group"] = list(groups).index(json.dumps(shared, sort_keys=True))
    measures = list(dict.fromkeys(title for row in rows for title in row["measures"]))
    for group in groups.values():
        group["spread"] = {
            title: _spread(
                [results[name]["measures"][title] for name in group["runs"] if title in results[name]["measures"]]
            )
            for title in measures
        }
    return {"keys": keys, "seeds": seeds, "measures": measures, "runs": rows, "groups": list(groups.values())}


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    deviation = {"std": statistics.stdev(values)} if len(values) > 1 else {}
    return {"n": len(values), "mean": statistics.fmean(values), **deviation, "min": min(values), "max": max(values)}


def _measures(numbers: dict[str, Any]) -> dict[str, float]:
    """Title -> what the last stage of one run has reached, by the numbers of its own page."""
    last = numbers["stages"][-1]
    measures: dict[str, float] = {}
    for metric in (metric for metric in _METRICS if metric in last["final"]):
        title = f"training {TITLES[metric]}, last tenth" if metric == "loss" else TITLES[metric]
        measures[title] = last["final"][metric]
    for dataset, models in numbers["evaluations"].items():
        if (found := models.get(last["name"])) and found["kind"] in MEASURES:
            key, title = MEASURES[found["kind"]]
            if found[key] is not None:
                measures[f"{dataset}: {title}"] = found[key]
    for task, models in numbers["lm_eval"].items():
        for metric, told in models.get(last["name"], {}).items():
            if told["value"] is not None:
                measures[f"{task}: {metric}"] = told["value"]
    return measures


def _numbers(report: Path) -> dict[str, Any]:
    """`summary.json` of a run's own page."""
    path = report.parent / "summary.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete {report} to make the run's page again") from None
