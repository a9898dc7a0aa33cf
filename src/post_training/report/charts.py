"""The numbers of a page -> its charts, by name, as plain values that charts.js draws.

A chart has a `title`, a `kind` and

- `lines`: `name`, `colour` (its number in the palette), `values`, and what they are drawn over: `step`, `tokens`, `seconds`; and `marks`;
- `steps`: `name`, `colour`, `edges` and `values`, one fewer, over a logarithmic axis named `x`; and `limit`, a place on it;
- `stack`: `rows`, names of the bars, and `parts`: `name` and `values`, seconds for each bar.
"""

from collections.abc import Iterable
from typing import Any

from post_training.report.elapsed import PARTS

Charts = dict[str, dict[str, Any]]


def of_run(numbers: dict[str, Any]) -> Charts:
    """The charts of a run: `curve <stage> <metric>`, `lengths <stage>`, `time`, `stages`."""
    found: Charts = {}
    for place, stage in enumerate(numbers["stages"]):
        for metric, curve in stage["curves"].items():
            line = {"name": stage["name"], "colour": place, **{k: v for k, v in curve.items() if k != "title"}}
            found[f"curve {stage['name']} {metric}"] = {
                "kind": "lines", "title": curve["title"], "lines": [line], "marks": stage["marks"],
            }  # fmt: skip
        if chart := _lengths(stage):
            found[f"lengths {stage['name']}"] = chart
    timed = [stage for stage in numbers["stages"] if stage["elapsed"]]
    if timed:
        parts = [
            {"name": title, "values": [stage["elapsed"][part] for stage in timed]}
            for part, title in PARTS.items()
            if any(stage["elapsed"][part] for stage in timed)
        ]
        found["time"] = {"kind": "stack", "title": "", "rows": [stage["name"] for stage in timed], "parts": parts}
    found["stages"] = _stages(numbers["costs"])
    return found


def of_runs(runs: list[dict[str, Any]], curves: dict[str, dict[str, Any]], metrics: Iterable[str]) -> Charts:
    """A chart a metric with a line a run, in the colour of its group; `curves` are run name -> metric -> curve."""
    found: Charts = {}
    for metric in metrics:
        for run in (run for run in runs if metric in curves[run["name"]]):
            curve = curves[run["name"]][metric]
            chart = found.setdefault(metric, {"kind": "lines", "title": curve["title"], "lines": []})
            line = {key: value for key, value in curve.items() if key != "title"}
            chart["lines"].append({"name": run["name"], "colour": run["group"], **line})
    return found


def _lengths(stage: dict[str, Any]) -> dict[str, Any] | None:
    """Share of a dataset's rows in each bin: small datasets beside large ones."""
    lines = []
    for place, dataset in enumerate(stage["data"]):
        edges, counts = dataset["lengths"]["edges"], dataset["lengths"]["counts"]
        if total := sum(counts):
            shares = [count / total for count in counts]
            lines.append({"name": dataset["name"], "colour": place, "edges": edges, "values": shares})
    if not lines:
        return None
    limit = stage["packing"]["max_seq_length"]
    return {"kind": "steps", "title": "share of rows by length", "x": "tokens", "lines": lines, "limit": limit}


def _stages(costs: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of every stage of the graph, waiting and working."""
    rows = [cost["name"] for cost in costs]
    parts = [{"name": "working", "values": [cost["seconds"] for cost in costs]}]
    if any(cost["queue_seconds"] for cost in costs):
        parts.insert(0, {"name": "in the queue", "values": [cost["queue_seconds"] for cost in costs]})
    return {"kind": "stack", "title": "", "rows": rows, "parts": parts}
