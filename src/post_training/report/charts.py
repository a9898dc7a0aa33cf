"""The numbers of a page -> its charts, by name, as plain values that charts.js draws.

A chart has a `title`, a `kind` and

- `lines`: `name`, `colour` (its number in the palette), `values`, and what they are drawn over: `step`, `tokens`, `seconds`;
  `marks`; `zero`, whether the axis begins there; `format` of its ticks; `reference`, a level with its `text`;
- `points`: `name`, `colour`, `x` and `y` of each, over an axis named `x`; `mean`, the line through them; `zero` and `format`;
- `steps`: `name`, `colour`, `edges` and `values`, one fewer, over a logarithmic axis named `x`; and `limit`, a value on it;
- `stack`: `rows`, names of the bars, and `parts`: `name` and `values`, seconds for each bar.
"""

import math
from collections.abc import Iterable
from typing import Any

from post_training.core.format import GIB
from post_training.report.curves import TITLES
from post_training.report.elapsed import PARTS

Chart = dict[str, Any]
# Title of a chart of a training -> its lines: metric and, where there are several, the line's name.
_OF_TRAINING: dict[str, dict[str, str]] = {
    "loss": {"loss": "training", "eval_loss": "held-out"},
    "preference accuracy": {"rewards/accuracies": "training", "eval_rewards/accuracies": "held-out"},
    "rewards/chosen and rewards/rejected": {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
    "rewards/margins": {"rewards/margins": "training", "eval_rewards/margins": "held-out"},
    "accuracy of rewards": {"accuracy": "training", "eval_accuracy": "held-out"},
    "margin of rewards": {"margin": "training", "eval_margin": "held-out"},
    "rewards of answers": {"max_reward": "highest", "mean_reward": "mean", "min_reward": "lowest"},
    "FLOPs utilisation": {"mfu": "model (MFU)", "hfu": "hardware (HFU)"},
}
_TOGETHER = {metric for lines in _OF_TRAINING.values() for metric in lines}
_SHARES = ("preference accuracy", "accuracy of rewards", "token accuracy", "FLOPs utilisation", TITLES["padding_share"])
_FROM_ZERO = (*_SHARES, TITLES["peak_memory_bytes"], TITLES["tokens_per_second"], TITLES["learning_rate"])
_FORMATS = {**dict.fromkeys(_SHARES, ".0%"), TITLES["tokens_per_second"]: "~s"}
# Colours of the palette for second lines: orange, beside green for what is chosen.
_COLOURS = {"held-out": 1, "chosen": 2, "rejected": 1, "hardware (HFU)": 1, "highest": 2, "lowest": 1}


def of_run(numbers: dict[str, Any]) -> dict[str, Chart]:
    """The charts of a run: `curve <stage> <title>`, `lengths <stage>`, `time`, `stages`."""
    found: dict[str, Chart] = {}
    for stage in numbers["stages"]:
        name = stage["name"]
        found |= {f"curve {name} {title}": chart for title, chart in _of_training(stage).items()}
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
            chart = found.setdefault(
                metric, {"kind": "lines", "title": curve["title"], "lines": [], **_axis("accurac" in metric)}
            )
            chart["lines"].append(_line(run["name"], run["group"], curve))
    return found


def over_keys(compared: dict[str, Any]) -> dict[str, Chart]:
    """Each held-out measure over each key that is swept and no seed: `<measure> over <key>`, a point a run."""
    found: dict[str, Chart] = {}
    keys = [key for key in compared["keys"] if key not in compared["seeds"]]
    for title in compared["measures"]:
        own = compared["held_out"].get(title)
        for key in keys if own is not None else ():
            runs = [run for run in compared["runs"] if title in run["measures"]]
            points = {"name": [run["name"] for run in runs], "colour": [run["group"] for run in runs],
                      "x": [run["values"].get(key) for run in runs], "y": [run["measures"][title] for run in runs]}  # fmt: skip
            numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in points["x"])
            if not numeric:
                points["x"] = [str(x) for x in points["x"]]
            levels = sorted(set(points["x"])) if numeric else list(dict.fromkeys(points["x"]))
            of_level = [[y for x, y in zip(points["x"], points["y"], strict=True) if x == level] for level in levels]
            chart = {
                "kind": "points",
                "title": title,
                "x": key,
                "points": points,
                "numeric": numeric,
                **_axis(own["share"]),
            }
            chart["mean"] = {"x": levels, "y": [sum(values) / len(values) for values in of_level]}
            # A learning rate is tried at factors, not at steps.
            chart["log"] = bool(numeric and levels and levels[0] > 0 and levels[-1] >= 8 * levels[0])
            found[f"{title} over {key}"] = chart
    return found


def _axis(share: bool) -> dict[str, Any]:
    return {"zero": share, "format": ".0%" if share else ""}


def _of_training(stage: dict[str, Any]) -> dict[str, Chart]:
    """Title -> chart, each with the metrics that belong together."""
    curves, found = stage["curves"], {}
    single = {TITLES[metric]: {metric: ""} for metric in curves if metric not in _TOGETHER}
    for title, metrics in {**_OF_TRAINING, **single}.items():
        lines = []
        for metric, name in metrics.items():
            if metric in curves:
                curve = curves[metric]
                if metric == "peak_memory_bytes":
                    curve = {**curve, "values": [value / GIB for value in curve["values"]]}
                lines.append(_line(name or stage["name"], _COLOURS.get(name, 0), curve))
        if lines:
            chart = {"kind": "lines", "title": title, "lines": lines, "marks": stage["marks"]}
            chart |= {"zero": title in _FROM_ZERO, "format": _FORMATS.get(title, "")}
            if title == "loss" and _starts_at_ln2(stage["config"]):
                chart["reference"] = {"value": math.log(2), "text": "ln 2: no preference yet"}
            found[title] = chart
    return found


def _starts_at_ln2(config: dict[str, Any]) -> bool:
    """Whether the loss is ln 2 while nothing is preferred: of a policy that equals its reference, and of equal rewards."""
    if config.get("method") == "reward":
        return True
    loss = (config.get("dpo") or {}).get("loss_type", "sigmoid")
    return config.get("method") == "dpo" and loss in ("sigmoid", ["sigmoid"])


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
