"""The model card of an export, `README.md`, in the form of the Hugging Face Hub.

Export writes it; the rule `card` writes it again once the model was evaluated, beside its own manifest and then over the
one in the model's folder, so that no manifest describes a file that has changed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from post_training import methods
from post_training.core.fingerprint import write_atomically
from post_training.core.format import with_error
from post_training.core.task import Task
from post_training.lineage.collect import Lineage, Stage, Stages, collect, to_source, trainings
from post_training.lineage.verify import CARD

Results = dict[str, dict[str, dict[str, Any]]]
"""Model (`base`, or this one) -> dataset -> result of an evaluation."""
BASE, THIS = "base", "this model"
# Numbers of an evaluation that count rather than measure.
_COUNTS = ("rows", "tokens", "samples")
_NAMES = {
    "exact_match": "exact match", "accuracy": "accuracy of preferences", "margin": "margin (nats)",
    "loss": "loss per token (nats)", "stopped": "share of answers that ended",
}  # fmt: skip
_SHOWN_ALWAYS = ("max_steps", "num_training_samples", "num_training_tokens", "num_train_epochs", "effective_batch_size",
                 "learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm", "seed")  # fmt: skip


def run(task: Task) -> None:
    """Body of the rule `card`: inputs are `export`, and evaluations named `<model> <kind>`, `base` among them."""
    results: Results = {}
    tasks: Results = {}
    for name in (name for name in task.inputs if name != "export"):
        found = tasks if name.endswith(" lm_eval") else results
        model = BASE if name.startswith(f"{BASE} ") else THIS
        found.setdefault(model, {}).update(task.input_manifest(name).get("results") or {})
    text = card(collect(task.inputs["export"]), results, tasks, task.runtime.get("title"))
    folder = task.inputs["export"].parent
    for path in (task.directory / CARD, folder / CARD):
        write_atomically(path, text)
    print(f"card: {folder / CARD}", flush=True)
    task.finish(files=[{"path": CARD}])


def card(lineage: Lineage, results: Results, tasks: Results, title: str | None = None) -> str:
    """The text of the card.

    Args:
        lineage: of the export, as `lineage.collect` or its `provenance.json` gives it.
        results: may be empty.
        tasks: the same of lm-evaluation-harness, as `lm_eval.summary` gives it.
        title: of the card. None = from the run directory's name.
    """
    from huggingface_hub import ModelCard, ModelCardData

    stages, root = lineage["stages"], lineage["stages"][lineage["root"]]
    trained = trainings(lineage)[::-1]
    name = title or Path(lineage["root"]).parent.name.rpartition("-")[0] or "model"
    base = merged = stages[trained[0]["inputs"]["model"]]
    while base["stage"] == "merge_adapter":
        base = stages[base["inputs"]["base"]]
    names = [str(training["config"]["method"]) for training in trained]
    answers = methods.answers(names[-1])
    datasets = {s["repository"] for s in stages.values() if s["stage"] == "download" and s.get("repository")}
    evaluations, benchmarks = results.get(THIS, {}), tasks.get(THIS, {})
    data = ModelCardData(
        base_model=base.get("repository"),
        datasets=sorted(datasets) or None,
        license=base.get("license"),
        library_name="transformers",
        pipeline_tag="text-generation" if answers else "text-classification",
        tags=["trl", "post-training", "conversational" if answers else "reward-model", *dict.fromkeys(names)],
        model_name=name if evaluations or benchmarks else None,
        eval_results=_eval_results(evaluations, benchmarks) or None,
    )
    if base.get("repository"):
        revision = f" at `{base['revision_sha']}`" if base.get("revision_sha") else ""
        start = f"[{base['repository']}](https://huggingface.co/{base['repository']}){revision}"
        start += " with adapters in its weights" if merged is not base else ""
    else:
        start = "random weights" if base["stage"] == "build_model" else "a local model"
    git = root.get("git")
    changed = " with changes" if git and git["dirty"] else ""
    text = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("card.md.jinja")),
        name=name,
        methods=names,
        answers=answers,
        start=start,
        evaluations=_evaluations(evaluations, results.get(BASE, {})),
        benchmarks=_benchmarks(benchmarks, tasks.get(BASE, {})),
        mixes=[_mix(training, stages) for training in trained],
        hyper_parameters=_hyper_parameters(trained),
        gpu_hours=lineage.get("gpu_hours"),
        code=f"commit `{git['commit']}`{changed}" if git else f"`{root.get('code_sha256')}`",
        versions=", ".join(f"{name} {version}" for name, version in (root.get("versions") or {}).items()),
    )
    return f"{text}\n"


def _mix(training: Stage, stages: Stages) -> dict[str, Any]:
    """Method, rows and a table of the datasets of one training's mix."""
    mixed = stages[training["inputs"]["data"]]
    table = mixed.get("table") or []
    datasets = [
        [
            entry["name"], *_source(stages, mixed["inputs"].get(entry["name"])), _number(entry.get("rows_used")),
            _number(entry.get("tokens")), _number(entry.get("trained_tokens")), f"{entry.get('share', 0):.1%}",
        ]
        for entry in table
    ]  # fmt: skip
    return {"method": training["config"]["method"], "rows": _number(mixed.get("rows_out")), "datasets": datasets}


def _source(stages: Stages, key: str | None) -> tuple[str, str]:
    """Source and licence of a tokenised dataset."""
    chain = to_source(stages, key)
    if not chain or chain[-1]["stage"] != "download":
        return "", "unknown"
    source = chain[-1]
    licence = source.get("license") or "unknown"
    if source.get("repository"):
        link = f"[{source['repository']}](https://huggingface.co/datasets/{source['repository']})"
        return f"{link} at `{str(source.get('revision_sha'))[:12]}`", licence
    files = source.get("files") or []
    named = ", ".join(f"`{Path(file['path']).name}`" for file in files[:3])
    return named + (f" and {len(files) - 3} more" if len(files) > 3 else ""), licence


def _hyper_parameters(trained: list[Stage]) -> list[list[str]]:
    """One row a key, one column a training."""
    columns = []
    for training in trained:
        config = training["config"]
        first, last = training.get("loss_first"), training.get("loss_last")
        own = {
            **{key: config["training"].get(key) for key in _SHOWN_ALWAYS},
            **config.get(config["method"], {}),
            **(config["training"].get("trainer_args") or {}),
            **{f"lora {key}": value for key, value in (config["model"].get("lora") or {}).items()},
            "dtype": config["model"]["dtype"],
            "steps": training.get("steps"),
            "tokens seen": training.get("tokens"),
            "loss, first to last": None if first is None or last is None else f"{first:.4g} to {last:.4g}",
        }
        columns.append({key: value for key, value in own.items() if value not in (None, [], {})})
    names = dict.fromkeys(name for column in columns for name in column)
    return [[f"`{name}`", *(_number(column.get(name)) for column in columns)] for name in names]


def _evaluations(results: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [
        [dataset, _NAMES.get(metric, metric), *map(_number, (before.get(dataset, {}).get(metric), value, result.get("rows")))]
        for dataset, result in results.items()
        for metric, value in _metrics(result)
    ]  # fmt: skip


def _benchmarks(tasks: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [
        [task, measure, with_error(before.get(task, {}).get(measure)), with_error(score)]
        for task, measures in tasks.items()
        for measure, score in measures.items()
    ]


def _metrics(result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a result that measure quality."""
    for name, value in result.items():
        if name not in _COUNTS and isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _eval_results(results: dict[str, dict[str, Any]], tasks: dict[str, dict[str, Any]]) -> list[Any]:
    """The measures as the Hub's `model-index` has them."""
    from huggingface_hub import EvalResult

    rows = [
        (task, f"{task} (lm_eval)", m, score["value"], m)
        for task, scores in tasks.items()
        for m, score in scores.items()
    ]
    rows += [
        (name, name, m, value, _NAMES.get(m, m)) for name, result in results.items() for m, value in _metrics(result)
    ]
    return [
        EvalResult(
            task_type="text-generation", dataset_type=dataset.replace(" ", "-"), dataset_name=shown,
            metric_type=metric, metric_value=round(value, 6), metric_name=title,
        )
        for dataset, shown, metric, value, title in rows
    ]  # fmt: skip


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
