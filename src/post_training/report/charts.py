"""The numbers of a page -> its charts, by name, as plain values that charts.js draws.

A chart has a `title`, a `kind` and

- `lines`: `name`, `colour` (its number in the palette), `values`, and what they are drawn over: `step`, `tokens`, `seconds`; and `marks`;
- `steps`: `name`, `colour`, `edges` and `values`, one fewer, over a logarithmic axis named `x`; and `limit`, a value on it;
- `stack`: `rows`, names of the bars, and `parts`: `name` and `values`, seconds for each bar.
"""

from collections.abc import Iterable
from typing import Any

from post_training.report.elapsed import PARTS

Chart = dict[str, Any]


def of_run(numbers: dict[str, Any]) -> dict[str, Chart]:
    """The charts of a run: `curve <stage> <metric>`, `lengths <stage>`, `time`, `stages`."""
    found: dict[str, Chart] = {}
    for colour, stage in enumerate(numbers["stages"]):
        name = stage["name"]
        for metric, curve in stage["curves"].items():
            lines = [_line(name, colour, curve)]
            chart = {"kind": "lines", "title": curve["title"], "lines": lines, "marks": stage["marks"]}
            found[f"curve {name} {metric}"] = chart
        if lengths := _lengths(stage):
            found[f"lengths {name}"] = lengths
    times = {stage["name"]: stage["elapsed"] for stage in numbers["stages"] if stage["elapsed"]}
    if times:
        parts = {title: [time[part] for time in times.values()] for part, title in PARTS.items()}
        found["time"] = _stack(list(times), parts)
    costs = numbers["costs"]
    parts = {"in the queue": [cost["queue_seconds"] for cost in costs], "working": [cost["seconds"] for cost in costs]}
    found["stages"] = _stack([cost["name"] for cost in costs], parts)
    return found


def of_runs(runs: list[dict[str, Any]], curves: dict[str, dict[str, Any]], metrics: Iterable[str]) -> dict[str, Chart]:
    """A chart for each metric with a line for each run, in the colour of its group; `curves`: run name -> metric -> curve."""
    found: dict[str, Chart] = {}
    for metric in metrics:
        for run in (run for run in runs if metric in curves[run["name"]]):
            curve = curves[run["name"]][metric]
            chart = found.setdefault(metric, {"kind": "lines", "title": curve["title"], "lines": []})
            chart["lines"].append(_line(run["name"], run["group"], curve))
    return found


def _line(name: str, colour: int, curve: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "colour": colour, **{key: value for key, value in curve.items() if key != "title"}}


def _stack(rows: list[str], parts: dict[str, list[float]]) -> Chart:
    """Bars of the parts that are not 0 everywhere."""
    kept = [{"name": name, "values": values} for name, values in parts.items() if any(values)]
    return {"kind": "stack", "title": "", "rows": rows, "parts": kept}


def _lengths(stage: dict[str, Any]) -> Chart | None:
    """Share of a dataset's examples in each bin, so that small datasets compare with large ones."""
    lines = []
    for colour, dataset in enumerate(stage["data"]):
        edges, counts = dataset["lengths"]["edges"], dataset["lengths"]["counts"]
        if total := sum(counts):
            shares = [count / total for count in counts]
            lines.append({"name": dataset["name"], "colour": colour, "edges": edges, "values": shares})
    limit, title = stage["packing"]["max_seq_length"], "share of examples by length"
    return {"kind": "steps", "title": title, "x": "tokens", "lines": lines, "limit": limit} if lines else None
