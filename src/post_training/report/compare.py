"""Several runs on one page: what each was given, what its last stage reached, the spread over seeds, curves over one another."""

import json
import os
import statistics
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.offline import get_plotlyjs

from post_training import manifest
from post_training.fingerprint import write_atomically
from post_training.report.collect import collect
from post_training.summary import MEASURES
from post_training.task import Task

# Of the last stage: metric in metrics.jsonl -> title. The first is noisy, and its last tenth is taken.
_CURVES = {
    "loss": "training loss, last tenth",
    "eval_loss": "held-out loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
}
_LINES = 100


def run(task: Task) -> None:
    """Write `report.html`, and its figures as `summary.json`, beside the manifest.

    The config's `runs` is a list of `[run name, {key: value}]`, and each input, by run name, that run's report.
    """
    results = {name: _result(task.inputs[name], task.directory) for name, _ in task.config["runs"]}
    numbers = compare(task.config["runs"], results)
    curves = {name: result["curves"] for name, result in results.items()}
    page, summary = task.directory / "report.html", task.directory / "summary.json"
    write_atomically(page, render(numbers, curves))
    write_atomically(summary, json.dumps(numbers, indent=1) + "\n")
    print(f"comparison of {len(results):,} runs: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    task.finish(files=[{"path": path.name, "bytes": path.stat().st_size} for path in (page, summary)])


def compare(runs: list[tuple[str, dict[str, Any]]], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the page.

    Args:
        runs: name and values of each run, a value for every key in which any two differ.
        results: run name -> `measures` (title -> number) and `page` (where its own report is).

    Returns `keys` (those that differ), `seeds` (those of them that are seeds), `measures` (titles), `runs`, and
    `groups`: runs that differ in seeds alone, with mean, sample standard deviation, least and greatest of each measure.
    """
    keys = list(dict.fromkeys(key for _, values in runs for key in values))
    seeds = [key for key in keys if key.rpartition(".")[2] == "seed"]
    groups: dict[str, dict[str, Any]] = {}
    rows = []
    for name, values in runs:
        rows.append({"name": name, "values": values, **{k: results[name][k] for k in ("measures", "page")}})
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


def _result(report: Path, here: Path) -> dict[str, Any]:
    """The last stage of one run, by the manifest of its report."""
    told = manifest.read(report)["inputs"]
    inputs = {name: Path(entry["path"]) for name, entry in told.items()}
    spec = {"inputs": {name: entry["fingerprint"] for name, entry in told.items()}}
    numbers = collect(Task("report", {}, {}, inputs, report, spec))
    last = numbers["stages"][-1]
    measures: dict[str, float] = {}
    for metric, title in _CURVES.items():
        if metric in last["curves"]:
            values = last["curves"][metric]["values"]
            measures[title] = statistics.fmean(
                values[-max(1, len(values) // 10) :] if metric == "loss" else values[-1:]
            )
    for dataset, models in numbers["evaluations"].items():
        if last["method"] in models:
            key, title = MEASURES[models[last["method"]]["kind"]]
            measures[f"{dataset}: {title}"] = models[last["method"]][key]
    page = os.path.relpath(report.parent / "report.html", here)
    return {"measures": measures, "page": page, "curves": {k: v for k, v in last["curves"].items() if k in _CURVES}}


def render(numbers: dict[str, Any], curves: dict[str, dict[str, Any]]) -> str:
    """The page's text; `curves` are run name -> metric -> `title`, `steps`, `values`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = lambda value: f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
    shown = numbers["runs"][:_LINES]
    charts = {}
    for metric in _CURVES:
        lines = [(row, curves[row["name"]][metric]) for row in shown if metric in curves[row["name"]]]
        if lines:
            charts[lines[0][1]["title"]] = _chart(lines)
    replicated = any(len(group["runs"]) > 1 for group in numbers["groups"])
    return environment.get_template("compare.html.jinja").render(
        **numbers, charts=charts, replicated=replicated, lines=len(shown), plotly=get_plotlyjs()
    )


def _chart(lines: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """A line a run, in the colour of its group, as an HTML fragment."""
    figure = go.Figure()
    for row, curve in lines:
        colour = qualitative.D3[row["group"] % len(qualitative.D3)]
        line = {"color": colour, "width": 1.5}
        figure.add_trace(go.Scatter(x=curve["steps"], y=curve["values"], mode="lines", line=line, name=row["name"]))
    figure.update_layout(
        height=360,
        margin={"l": 40, "r": 10, "t": 10, "b": 30},
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#888"},
        legend={"orientation": "h"},
        showlegend=len(lines) <= 20,
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.2)", title="step")
    figure.update_yaxes(gridcolor="rgba(128,128,128,.2)")
    return str(
        figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    )
