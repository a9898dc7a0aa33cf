"""The model card of an export, `README.md`, in the form of the Hugging Face Hub.

Export writes it; the rule `card` writes it again once the model was evaluated, beside its own manifest and then over the
one in the model's folder. So no manifest says of a file what is no longer true.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from post_training.core.fingerprint import write_atomically
from post_training.core.format import with_error
from post_training.core.task import Task
from post_training.lineage import collect
from post_training.lineage.verify import CARD

Stages = dict[str, dict[str, Any]]
Results = dict[str, dict[str, dict[str, Any]]]
"""Model (`base`, or this one) -> dataset -> result of an evaluation."""
BASE, THIS = "base", "this model"
# Numbers of an evaluation that say how much was looked at.
_COUNTS = ("rows", "tokens", "samples")
_NAMES = {
    "exact_match": "exact match", "accuracy": "accuracy of preferences", "margin": "margin (nats)",
    "loss": "loss a token (nats)", "stopped": "share of answers that ended",
}  # fmt: skip
_SHOWN_ALWAYS = ("max_steps", "num_training_samples", "num_training_tokens", "num_train_epochs", "effective_batch_size",
                 "learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm", "seed")  # fmt: skip


def run(task: Task) -> None:
    """Body of the rule `card`: inputs are `export`, and evaluations named `<model> <kind>`, `base` among them."""
    results: Results = {}
    tasks: Results = {}
    for name in (name for name in task.inputs if name != "export"):
        found = tasks if name.endswith(" lm_eval") else results
        told = task.input_manifest(name).get("results") or {}
        found.setdefault(BASE if name.startswith(f"{BASE} ") else THIS, {}).update(told)
    text = card(collect(task.inputs["export"]), results, tasks)
    folder = task.inputs["export"].parent
    for path in (task.directory / CARD, folder / CARD):
        write_atomically(path, text)
    print(f"card: {folder / CARD}", flush=True)
    task.finish(files=[{"path": CARD}])


def card(lineage: dict[str, Any], results: Results, tasks: Results) -> str:
    """The text of the card.

    Args:
        lineage: of the export, as `lineage.collect` or its `provenance.json` gives it.
        results: may be empty.
        tasks: the same of lm-evaluation-harness, as `lm_eval.summary` gives it.
    """
    from huggingface_hub import ModelCard, ModelCardData

    stages: Stages = lineage["stages"]
    trainings = _trainings(lineage)
    name = Path(lineage["root"]).parent.name.rpartition("-")[0] or "model"
    base = stages[trainings[0]["inputs"]["model"]]
    methods = [str(training["config"]["method"]) for training in trainings]
    sources = [stage for stage in stages.values() if stage["stage"] == "download" and stage.get("repository")]
    data = ModelCardData(
        base_model=base.get("repository"),
        datasets=sorted({source["repository"] for source in sources}) or None,
        license=base.get("license"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["post-training", "conversational", *dict.fromkeys(methods)],
        model_name=name if results.get(THIS) or tasks.get(THIS) else None,
        eval_results=_eval_results(results.get(THIS, {}), tasks.get(THIS, {})) or None,
    )
    origin = f"[{base['repository']}](https://huggingface.co/{base['repository']})" if base.get("repository") else None
    origin = origin or ("random weights" if base["stage"] == "build_model" else "a local model")
    revision = f" at `{base['revision_sha']}`" if base.get("revision_sha") else ""
    body = [
        f"# {name}",
        f"Trained with {' and then '.join(method.upper() for method in methods)} from {origin}{revision}.",
        "## How to load",
        _HOW_TO_LOAD,
        *_section("Evaluation", "\n\n".join(filter(None, [_evaluation(results), _benchmarks(tasks)]))),
        "## Data",
        *(_data(training, stages) for training in trainings),
        "## Training",
        _table(["", *methods], _hyper_parameters(trainings)),
        "## Provenance",
        *_provenance(lineage),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n"))


_HOW_TO_LOAD = """```python
from transformers import pipeline

chat = pipeline("text-generation", model="path/to/this/folder")
print(chat([{"role": "user", "content": "Hello"}], max_new_tokens=256)[0]["generated_text"][-1]["content"])
```

The chat template and the tokens that end an answer come with the tokenizer and `generation_config.json`; `vllm serve
path/to/this/folder` uses both."""


def _trainings(lineage: dict[str, Any]) -> list[dict[str, Any]]:
    """The training stages that lead to the model, first to last."""
    found, stages = [], lineage["stages"]
    stage = stages[lineage["root"]]
    while stage["stage"] == "export":
        training = stages[stage["inputs"]["train"]]
        found.append(training)
        stage = stages[training["inputs"]["model"]]
    return found[::-1]


def _data(training: dict[str, Any], stages: Stages) -> str:
    """A table of the datasets of one training's mix."""
    mixed = stages[training["inputs"]["data"]]
    rows = []
    for entry in mixed.get("table") or []:
        source = _source(stages, mixed["inputs"].get(entry["name"]))
        rows.append(
            [
                entry["name"], source.get("origin", ""), source.get("license", "unknown"), _number(entry.get("rows_used")),
                _number(entry.get("tokens")), _number(entry.get("trained_tokens")), f"{entry.get('share', 0):.1%}",
            ]
        )  # fmt: skip
    title = f"{str(training['config']['method']).upper()}: {_number(mixed.get('rows_out'))} rows an epoch."
    heads = ["dataset", "source", "licence", "rows", "tokens", "trained tokens", "share"]
    return title + ("\n\n" + _table(heads, rows) if rows else "")


def _source(stages: Stages, key: str | None) -> dict[str, str]:
    """Where the rows of a tokenised dataset come from, and under which licence."""
    while key is not None and stages[key]["stage"] != "download":
        inputs = stages[key]["inputs"]
        key = inputs.get("rows") or inputs.get("raw") or next(iter(inputs.values()), None)
    if key is None:
        return {}
    told = stages[key]
    found = {"license": told["license"]} if told.get("license") else {}
    if told.get("repository"):
        link = f"[{told['repository']}](https://huggingface.co/datasets/{told['repository']})"
        return {**found, "origin": f"{link} at `{str(told.get('revision_sha'))[:12]}`"}
    files = told.get("files") or []
    named = ", ".join(f"`{Path(file['path']).name}`" for file in files[:3])
    return {**found, "origin": named + (f" and {len(files) - 3} more" if len(files) > 3 else "")}


def _hyper_parameters(trainings: list[dict[str, Any]]) -> list[list[str]]:
    """One row a key, one column a training."""
    columns: list[dict[str, Any]] = []
    for training in trainings:
        config = training["config"]
        own = {**{key: config["training"].get(key) for key in _SHOWN_ALWAYS}, **config.get(config["method"], {})}
        own |= config["training"].get("trainer_args") or {}
        own |= {f"lora {key}": value for key, value in (config["model"].get("lora") or {}).items()}
        own |= {
            "dtype": config["model"]["dtype"],
            "steps": training.get("steps"),
            "tokens seen": training.get("tokens"),
        }
        own |= {"loss, first to last": _change(training)}
        columns.append({key: value for key, value in own.items() if value not in (None, [], {})})
    names = dict.fromkeys(name for column in columns for name in column)
    return [[f"`{name}`", *(_number(column.get(name)) for column in columns)] for name in names]


def _change(training: dict[str, Any]) -> str | None:
    first, last = training.get("loss_first"), training.get("loss_last")
    return None if first is None or last is None else f"{first:.4g} to {last:.4g}"


def _evaluation(results: Results) -> str | None:
    if not results.get(THIS):
        return None
    rows = []
    for dataset, result in results[THIS].items():
        before = results.get(BASE, {}).get(dataset, {})
        rows += [
            [
                dataset,
                _NAMES.get(metric, metric),
                _number(before.get(metric)),
                _number(value),
                _number(result.get("rows")),
            ]
            for metric, value in _metrics(result)
        ]
    return _table(["dataset", "measure", "before", "this model", "rows"], rows)


def _benchmarks(tasks: Results) -> str | None:
    if not tasks.get(THIS):
        return None
    rows = [
        [task, measure, with_error(tasks.get(BASE, {}).get(task, {}).get(measure)), with_error(told)]
        for task, measures in tasks[THIS].items()
        for measure, told in measures.items()
    ]
    table = _table(["task", "measure", "before", "this model"], rows)
    return f"With [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness), ± a standard error:\n\n{table}"


def _metrics(result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers that say how good."""
    for name, value in result.items():
        if name not in _COUNTS and isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _eval_results(results: dict[str, dict[str, Any]], tasks: dict[str, dict[str, Any]]) -> list[Any]:
    from huggingface_hub import EvalResult

    benchmarks = [
        EvalResult(
            task_type="text-generation", dataset_type=task.replace(" ", "-"), dataset_name=f"{task} (lm_eval)",
            metric_type=measure, metric_value=round(told["value"], 6), metric_name=measure,
        )
        for task, measures in tasks.items() for measure, told in measures.items()
    ]  # fmt: skip
    return benchmarks + [
        EvalResult(
            task_type="text-generation", dataset_type=dataset.replace(" ", "-"), dataset_name=dataset,
            metric_type=metric, metric_value=round(value, 6), metric_name=_NAMES.get(metric, metric),
        )
        for dataset, result in results.items() for metric, value in _metrics(result)
    ]  # fmt: skip


def _provenance(lineage: dict[str, Any]) -> list[str]:
    root = lineage["stages"][lineage["root"]]
    git = root.get("git")
    code = (
        f"commit `{git['commit']}`{' with changes' if git['dirty'] else ''}" if git else f"`{root.get('code_sha256')}`"
    )
    versions = ", ".join(f"{name} {version}" for name, version in (root.get("versions") or {}).items())
    costs = f" It took {lineage['gpu_hours']:,.2f} GPU-hours." if lineage.get("gpu_hours") else ""
    return [
        "`provenance.json` names every stage that led here, with the hashes of its files, the revisions of its sources, the "
        f"code and the versions.{costs} `python -m post_training lineage --verify <this folder>` reads it.",
        f"Code: {code}. Versions: {versions}.",
        "`snakemake --configfile config.yaml`, with the file of this folder and the same local data, makes the model again.",
    ]


def _section(title: str, text: str | None) -> list[str]:
    return [f"## {title}", text] if text else []


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
