"""Manifests and what lies beside them -> the numbers of a run's page, which are also its `summary.json`."""

import math
from collections import Counter
from typing import Any

from post_training import lineage
from post_training.core import json_lines, manifest
from post_training.core.task import Task
from post_training.lineage.collect import key_of
from post_training.lineage.show import facts, sources
from post_training.report import data
from post_training.report.curves import curves, final, marks
from post_training.report.elapsed import elapsed
from post_training.run_dir import attempts, metrics
from post_training.run_dir.predictions import of_run as record_of

# Prompts of each dataset whose answers are shown.
_SAMPLES = 5


def collect(task: Task) -> dict[str, Any]:
    """Everything on the page, as plain values.

    Returns

    - `name`: the report's own; `models`: `base` and each trained stage in the order of training;
    - `stages`: a dict a training with `name`, `facts`, `curves`, `final`, `marks`, `elapsed`, `data`, `packing`, `preflight`, `config`;
    - `evaluations`: dataset -> model -> results; `lm_eval`: task -> model -> metric -> `value`, `stderr`;
    - `samples`: dataset -> prompts, each with every model's answer;
    - `lineage`: `root`, and `stages` by key, each with `inputs` (name -> key), `facts` and `sources` in words;
    - `costs`: a line a stage; `totals`: their sums.
    """
    names = [name.removeprefix("train_") for name in task.inputs if name.startswith("train_")]
    # The order of training, not of the alphabet: a stage comes after the one whose export it starts from.
    names.sort(key=lambda name: _depth(task, name))
    models = ["base", *names]
    traced = _lineage(task, names[-1])
    costs = _costs(traced["stages"])
    return finite(
        {
            "name": task.directory.name,
            "models": models,
            "stages": [_stage(task, name) for name in names],
            "evaluations": _by_dataset(task, "evaluate", models),
            "lm_eval": _by_dataset(task, "lm_eval", models),
            "samples": _samples(task, models),
            "lineage": {
                "root": traced["root"],
                "stages": {
                    key: {
                        "stage": stage["stage"],
                        "inputs": stage["inputs"],
                        "facts": facts(stage),
                        "sources": sources(stage),
                    }
                    for key, stage in traced["stages"].items()
                },
            },
            "costs": costs,
            "totals": _totals(costs),
        }
    )


def finite(value: Any) -> Any:
    """The same without numbers that are none, as of an evaluation that overflowed: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _depth(task: Task, name: str) -> int:
    start = task.input_manifest(f"train_{name}")["inputs"]["model"]
    parents = [parent.removeprefix("export_") for parent in task.inputs if parent.startswith("export_")]
    fingerprints = {parent: task.spec["inputs"][f"export_{parent}"] for parent in parents}
    parent = next((found for found, value in fingerprints.items() if value == start["fingerprint"]), None)
    return 0 if parent is None else 1 + _depth(task, parent)


def _stage(task: Task, name: str) -> dict[str, Any]:
    path = task.inputs[f"train_{name}"]
    trained, directory = manifest.read(path), path.parent
    mixed, timed = data.mix_of(trained), elapsed(directory)
    lines, foretold = metrics.read(metrics.path_of(directory)), record_of(directory)
    predicted = (foretold or {}).get("predicted") or {}
    told = {
        "method": trained["config"].get("method"),
        "run directory": str(directory),
        "steps": trained.get("steps"),
        "tokens": trained.get("tokens"),
        "trained tokens": trained.get("trained_tokens"),
        "parameters": trained.get("parameters"),
        "trainable parameters": trained.get("trainable_parameters"),
        "devices": trained.get("world_size"),
        "device": trained.get("device_name"),
        "loss, first": trained.get("loss_first"),
        "loss, last": trained.get("loss_last"),
        "commit": (trained.get("git") or {}).get("commit"),
        "finished": trained.get("finished"),
    }
    return {
        "name": name,
        "facts": {key: value for key, value in told.items() if value is not None},
        "curves": curves(lines, predicted, trained.get("world_size") or 1),
        "final": final(lines),
        "marks": marks(lines, timed.get("starts", [])),
        "elapsed": timed,
        "data": data.datasets(mixed),
        "packing": data.packing(mixed),
        "preflight": foretold,
        "config": trained["config"],
    }


def _by_dataset(task: Task, kind: str, models: list[str]) -> dict[str, dict[str, Any]]:
    """Dataset or task -> model -> results, of the inputs `<kind>_<model>`."""
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        if f"{kind}_{model}" in task.inputs:
            for name, results in task.input_manifest(f"{kind}_{model}")["results"].items():
                found.setdefault(name, {})[model] = results
    return found


def _samples(task: Task, models: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The first rows of each dataset with every model's answer to the same prompt."""
    found: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        if f"evaluate_{model}" not in task.inputs:
            continue
        seen: Counter[str] = Counter()
        for sample in json_lines.read(task.inputs[f"evaluate_{model}"].parent / "samples.jsonl"):
            dataset = sample["dataset"]
            index = seen[dataset]
            seen[dataset] += 1
            if index < _SAMPLES:
                shown = found.setdefault(dataset, [])
                if index == len(shown):
                    shown.append({"sample": sample, "models": {}})
                shown[index]["models"][model] = sample
    return found


def _lineage(task: Task, last: str) -> lineage.Lineage:
    """Everything that the last model, and its evaluations, were made from."""
    name = f"export_{last}" if f"export_{last}" in task.inputs else f"train_{last}"
    found = lineage.collect(task.inputs[name])
    for other in task.inputs.values():
        if key_of(other.resolve().parent) not in found["stages"]:  # most are what the last model was made from
            for key, stage in lineage.collect(other)["stages"].items():
                found["stages"].setdefault(key, stage)
    return found


def _costs(stages: dict[str, Any]) -> list[dict[str, Any]]:
    """A line a stage: `stage`, `name`, `seconds`, `queue_seconds`, `gpu_hours`, `energy_joules`."""
    found = []
    for key, stage in stages.items():
        jobs = stage["jobs"]
        found.append(
            {
                "stage": stage["stage"],
                "name": key,
                "seconds": sum(map(attempts.seconds, jobs)) if jobs else stage.get("seconds", 0.0),
                "queue_seconds": attempts.queue_seconds(jobs),
                "starts": max(1, len(jobs)),
                "gpu_hours": stage["gpu_hours"],
                "energy_joules": stage.get("energy_joules"),
            }
        )
    return found


def _totals(costs: list[dict[str, Any]]) -> dict[str, Any]:
    energies = [cost["energy_joules"] for cost in costs if cost["energy_joules"] is not None]
    return {
        "seconds": round(sum(cost["seconds"] for cost in costs), 1),
        "queue_seconds": round(sum(cost["queue_seconds"] for cost in costs), 1),
        "gpu_hours": round(sum(cost["gpu_hours"] for cost in costs), 4),
        "energy_joules": sum(energies) if energies else None,
    }
