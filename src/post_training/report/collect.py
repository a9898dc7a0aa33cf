"""Manifests and metrics files -> the numbers of the page."""

import json
from pathlib import Path
from typing import Any

from post_training import manifest
from post_training.task import Task

# Shown of each training stage, in this order: metric in metrics.jsonl -> title.
CURVES = {
    "loss": "loss",
    "eval_loss": "held-out loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens a second",
}


def collect(task: Task) -> dict[str, Any]:
    """Everything on the page, as plain values.

    Returns `stages` (one a method: facts, curves), `data` (one row a dataset of a mix), `evaluations`
    (dataset -> model -> results) and `samples` (dataset -> prompts with each model's answer).
    """
    methods = [name.removeprefix("train_") for name in task.inputs if name.startswith("train_")]
    # The order of training, not of the alphabet: a stage comes after the one whose export it starts from.
    methods.sort(key=lambda method: _depth(task, method))
    models = ["base", *methods]
    return {
        "stages": [_stage(task, method) for method in methods],
        "data": [row for method in methods for row in _data_rows(task, method)],
        "evaluations": _evaluations(task, models),
        "samples": _samples(task, models),
    }


def _depth(task: Task, method: str) -> int:
    start = task.input_manifest(f"train_{method}")["inputs"]["model"]
    parents = [m.removeprefix("export_") for m in task.inputs if m.startswith("export_")]
    fingerprints = {parent: task.spec["inputs"][f"export_{parent}"] for parent in parents}
    parent = next((name for name, value in fingerprints.items() if value == start["fingerprint"]), None)
    return 0 if parent is None else 1 + _depth(task, parent)


def _stage(task: Task, method: str) -> dict[str, Any]:
    path = task.inputs[f"train_{method}"]
    trained = manifest.read(path)
    rows = read_json_lines(path.parent / "logs" / "metrics.jsonl")
    curves = {}
    for metric, title in CURVES.items():
        points = [(row["step"], row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
        if points:
            curves[metric] = {"title": title, "steps": [p[0] for p in points], "values": [p[1] for p in points]}
    facts = {
        "run directory": str(path.parent),
        "steps": trained.get("steps"),
        "tokens": trained.get("tokens"),
        "trained tokens": trained.get("trained_tokens"),
        "seconds": trained.get("seconds"),
        "devices": trained.get("world_size"),
        "commit": (trained.get("git") or {}).get("commit"),
        "finished": trained.get("finished"),
    }
    return {
        "method": method,
        "facts": {k: v for k, v in facts.items() if v is not None},
        "curves": curves,
        "config": trained["config"],
    }


def _data_rows(task: Task, method: str) -> list[dict[str, Any]]:
    mixed = manifest.read(Path(task.input_manifest(f"train_{method}")["inputs"]["data"]["path"]))
    rows = []
    for entry in mixed["table"]:
        tokenized = manifest.read(Path(mixed["inputs"][entry["name"]]["path"]))
        filtered = manifest.read(Path(tokenized["inputs"]["rows"]["path"]))
        transformed, removed = filtered, {}
        if filtered["stage"] == "filter":
            transformed, removed = manifest.read(Path(filtered["inputs"]["rows"]["path"])), filtered["dropped"]
        dropped: dict[str, int] = {}
        for counts in (transformed["dropped"], removed, tokenized["dropped"], entry.get("dropped", {})):
            for reason, count in counts.items():
                dropped[reason] = dropped.get(reason, 0) + (count["rows"] if isinstance(count, dict) else count)
        rows.append({"stage": method, **entry, "rows_in": transformed["rows_in"], "dropped": dropped})
    return rows


def _evaluations(task: Task, models: list[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        if f"evaluate_{model}" in task.inputs:
            for dataset, results in task.input_manifest(f"evaluate_{model}")["results"].items():
                found.setdefault(dataset, {})[model] = results
    return found


def _samples(task: Task, models: list[str], at_most: int = 5) -> dict[str, list[dict[str, Any]]]:
    """The first rows of each dataset with every model's answer to the same prompt."""
    found: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        if f"evaluate_{model}" not in task.inputs:
            continue
        per_dataset: dict[str, int] = {}
        for sample in read_json_lines(task.inputs[f"evaluate_{model}"].parent / "samples.jsonl"):
            dataset = sample["dataset"]
            index = per_dataset.get(dataset, 0)
            per_dataset[dataset] = index + 1
            if index < at_most:
                shown = found.setdefault(dataset, [])
                if index == len(shown):
                    shown.append({"sample": sample, "models": {}})
                shown[index]["models"][model] = sample
    return found


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file that the workflow itself wrote; none when it is absent."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
