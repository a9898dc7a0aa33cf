"""Manifests and the files beside them -> the numbers of a run's page, which are also its `summary.json`."""

import math
from pathlib import Path
from typing import Any

from post_training import lineage, methods
from post_training.core.task import Task
from post_training.lineage.collect import key_of
from post_training.lineage.show import facts, sources
from post_training.report import data, measures, on_policy
from post_training.report.curves import curves, final, marks
from post_training.report.elapsed import elapsed
from post_training.report.summary import first_samples
from post_training.run_dir import attempts, metrics, predictions

# Prompts of each dataset whose answers are shown.
_SAMPLES = 5
# On the page -> key of a training's manifest.
_FACTS = {
    "steps": "steps", "tokens": "tokens", "tokens with loss": "trained_tokens", "parameters": "parameters",
    "trainable parameters": "trainable_parameters", "devices": "world_size", "device": "device_name",
    "training loss, first": "loss_first", "training loss, last": "loss_last",
}  # fmt: skip


def collect(task: Task) -> dict[str, Any]:
    """Everything on the page, as plain values.

    Returns

    - `name`: the run's; `report`: the page's own directory; `model`: where the run's model is; `finished`: when its training was;
    - `models`: `base` and each trained stage in the order of training;
    - `measures`: every held-out measure with each model's value, and `headline`: what the last model gained (`report/measures.py`);
    - `stages`: for each training `name`, `facts`, `curves`, `final`, `marks`, `elapsed`, `data`, `packing`, `preflight`, `config`;
    - `evaluations`: dataset -> model -> results; `lm_eval`: task -> model -> metric -> `value`, `stderr`;
    - `samples`: dataset -> prompts, each with every model's answer;
    - `lineage`: `root`, and `stages` by key, each with `inputs` (name -> key), `facts` and `sources` in words;
    - `costs`: one entry per stage; `totals`: their sums.
    """
    names = [name.removeprefix("train_") for name in task.inputs if name.startswith("train_")]
    order: list[str] | None = task.runtime.get("stages")
    names.sort(key=order.index if order else lambda name: _depth(task, name))
    models = ["base", *names]
    # Of a chain to a model that answers, a reward model is no step.
    steps = [name for name in models if name in ("base", names[-1]) or _answers(task, name)]
    traced = _lineage(task, names[-1])
    costs = [_cost(key, stage) for key, stage in traced["stages"].items()]
    energies = [cost["energy_joules"] for cost in costs if cost["energy_joules"] is not None]
    run_name, base = task.runtime["run_name"], task.directory.parents[1]
    results = {"evaluations": _results(task, "evaluate", models), "lm_eval": _results(task, "lm_eval", models)}
    measured = measures.rows(finite(results))
    return finite(
        {
            "name": run_name,
            "report": task.directory.name,
            "model": str(base / run_name / "model"),
            "finished": task.input_manifest(f"train_{names[-1]}").get("finished"),
            "models": models,
            "measures": measured,
            "headline": measures.headline(measured, steps),
            "stages": [_stage(task, name) for name in names],
            **results,
            "samples": _samples(task, models),
            "win_rates": on_policy.win_rates(task, models),
            "lineage": {
                "root": traced["root"],
                "stages": {
                    key: {
                        "stage": s["stage"],
                        "inputs": s["inputs"],
                        "facts": facts(s),
                        "sources": _portable(sources(s)),
                    }
                    for key, s in traced["stages"].items()
                },
            },
            "costs": costs,
            "totals": {
                "seconds": round(sum(cost["seconds"] for cost in costs), 1),
                "queue_seconds": round(sum(cost["queue_seconds"] for cost in costs), 1),
                "gpu_hours": round(sum(cost["gpu_hours"] for cost in costs), 4),
                "energy_joules": sum(energies) if energies else None,
            },
        }
    )


def finite(value: Any) -> Any:
    """The same with None for NaN and Inf, as of an evaluation that overflowed: JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _portable(lines: list[str]) -> list[str]:
    """Paths below the working directory without it: a page is shown to others."""
    return [line.removeprefix(f"{Path.cwd()}/") for line in lines]


def _answers(task: Task, name: str) -> bool:
    return methods.answers(task.input_manifest(f"train_{name}")["config"]["method"])


def _depth(task: Task, name: str) -> int:
    """Number of trainings before this one."""
    model = task.input_manifest(f"train_{name}")["inputs"]["model"]["fingerprint"]
    exports = {
        task.spec["inputs"][key]: key.removeprefix("export_") for key in task.inputs if key.startswith("export_")
    }
    return 1 + _depth(task, exports[model]) if model in exports else 0


def _stage(task: Task, name: str) -> dict[str, Any]:
    trained, directory = task.input_manifest(f"train_{name}"), task.inputs[f"train_{name}"].parent
    mixed, timed, preflight = data.mix_of(trained), elapsed(directory), predictions.of_run(directory)
    lines = metrics.read(metrics.path_of(directory))
    predicted = (preflight or {}).get("predicted") or {}
    shown = {
        "method": trained["config"].get("method"),
        "run directory": str(directory),
        "commit": (trained.get("git") or {}).get("commit"),
        **{title: trained.get(key) for title, key in _FACTS.items()},
    }
    return {
        "name": name,
        "facts": {key: value for key, value in shown.items() if value is not None},
        "curves": curves(lines, predicted, trained.get("world_size") or 1),
        "final": final(lines),
        "marks": marks(lines, timed.get("starts", [])),
        "elapsed": timed,
        "data": data.datasets(mixed),
        "packing": data.packing(mixed),
        "generated": on_policy.generated(mixed),
        "preflight": preflight,
        "config": trained["config"],
    }


def _results(task: Task, kind: str, models: list[str]) -> dict[str, dict[str, Any]]:
    """Dataset or task -> model -> results, of the inputs `<kind>_<model>`."""
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        if f"{kind}_{model}" in task.inputs:
            for name, results in task.input_manifest(f"{kind}_{model}")["results"].items():
                found.setdefault(name, {})[model] = results
    return found


def _samples(task: Task, models: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The first prompts of each dataset with every model's answer."""
    found: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        if f"evaluate_{model}" in task.inputs:
            path = task.inputs[f"evaluate_{model}"].parent / "samples.jsonl"
            for dataset, samples in first_samples(path, _SAMPLES).items():
                shown = found.setdefault(dataset, [])
                shown += [{"sample": sample, "models": {}} for sample in samples[len(shown) :]]
                for prompt, sample in zip(shown, samples, strict=False):
                    prompt["models"][model] = sample
    return found


def _lineage(task: Task, last: str) -> lineage.Lineage:
    """Everything that the last model and the evaluations were made from."""
    found = lineage.collect(task.inputs.get(f"export_{last}", task.inputs[f"train_{last}"]))
    for other in task.inputs.values():
        if key_of(other.resolve().parent) not in found["stages"]:  # most are among those of the last model
            for key, stage in lineage.collect(other)["stages"].items():
                found["stages"].setdefault(key, stage)
    return found


def _cost(key: str, stage: lineage.Stage) -> dict[str, Any]:
    jobs = stage["jobs"]
    return {
        "stage": stage["stage"],
        "name": key,
        "seconds": sum(map(attempts.seconds, jobs)) if jobs else stage.get("seconds", 0.0),
        "queue_seconds": attempts.queue_seconds(jobs),
        "starts": max(1, len(jobs)),
        "gpu_hours": stage["gpu_hours"],
        "energy_joules": stage.get("energy_joules"),
    }
