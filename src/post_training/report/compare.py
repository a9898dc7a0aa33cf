"""Several runs on one page: their settings, results of the last stage, spread over seeds, and curves over one another."""

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

# Metrics of the last stage whose curves are drawn, and whose ends are measures.
_METRICS = ("loss", "rewards/accuracies", "rewards/margins")
# Curves of more runs are not read: those of a thousand would fill the memory.
_LINES = 100


def run(task: Task) -> None:
    """Write `report.html`, and its figures as `summary.json`, beside the manifest.

    The config's `runs` is a list of `[run name, {key: value}]`, and each input, by run name, that run's report.

    Raises UserError for a report without readable numbers.
    """
    results: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[str, Any]] = {}
    for name, _ in task.config["runs"]:
        report = task.inputs[name]
        numbers = _numbers(report)
        page = os.path.relpath(report.parent / "report.html", task.directory)
        results[name] = {"measures": _measures(numbers), "page": page, "totals": numbers["totals"]}
        if len(curves) < _LINES:
            curves[name] = numbers["stages"][-1]["curves"]
    compared = compare(task.config["runs"], results)
    shown = compared["runs"][:_LINES]
    write(task, "compare.html.jinja", compared, charts=charts.of_runs(shown, curves, _METRICS), lines=len(shown))


def compare(runs: list[tuple[str, dict[str, Any]]], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the page.

    Args:
        runs: name and values of each run, a value for every key in which any two differ.
        results: run name -> `measures` (title -> number), `page` (where its own report is) and `totals`.

    Returns `keys` (those that differ), `seeds` (those of them that are seeds), `measures` (titles), `runs`, and
    `groups`: runs that differ in seeds alone, with mean, sample standard deviation, minimum and maximum of each measure.
    """
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
    return {"keys": keys, "seeds": seeds, "measures": measures, "runs": shown, "groups": list(groups.values())}


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    deviation = {"std": statistics.stdev(values)} if len(values) > 1 else {}
    return {"n": len(values), "mean": statistics.fmean(values), **deviation, "min": min(values), "max": max(values)}


def _measures(numbers: dict[str, Any]) -> dict[str, float]:
    """Title -> result of a run's last stage, from the numbers of its own page."""
    last = numbers["stages"][-1]
    measures: dict[str, Any] = {}
    for metric in (metric for metric in _METRICS if metric in last["final"]):
        title = f"training {TITLES[metric]}, last tenth" if metric == "loss" else TITLES[metric]
        measures[title] = last["final"][metric]
    for dataset, models in numbers["evaluations"].items():
        if (found := models.get(last["name"])) and found["kind"] in MEASURES:
            key, title = MEASURES[found["kind"]]
            measures[f"{dataset}: {title}"] = found[key]
    for task, models in numbers["lm_eval"].items():
        for metric, result in models.get(last["name"], {}).items():
            measures[f"{task}: {metric}"] = result["value"]
    return {title: value for title, value in measures.items() if value is not None}


def _numbers(report: Path) -> dict[str, Any]:
    """`summary.json` of a run's own page."""
    path = report.parent / "summary.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete {report} to make the run's page again") from None
