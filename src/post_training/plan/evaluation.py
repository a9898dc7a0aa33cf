"""Stages after training: evaluations of every model, and the report."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import yaml

from post_training import methods
from post_training.config.load import Pipeline
from post_training.config.names import dataset_name
from post_training.core.errors import ConfigError, require
from post_training.core.locate import files_below
from post_training.data.rows import PROMPTS as PROMPTS_SHAPE
from post_training.evaluation.prompts import PROMPTS, read_prompts
from post_training.plan.data import DataStages
from post_training.plan.generated_keys import sampling_of
from post_training.plan.graph import Graph, Plan
from post_training.plan.held_out import has_held_out
from post_training.plan.rewards import Reward, rewards_of
from post_training.plan.stage import Stage

_LM_EVAL = "evaluation.lm_eval"


def add_evaluations(plan: Plan, data: DataStages, base_model: Stage) -> None:
    """Each exported model, and the one that the first stage starts from, on the held-out rows and on benchmarks."""
    view = plan.pipeline.last
    models = {"base": base_model, **plan.exported}
    inputs: dict[str, Stage] = {}
    scores: dict[str, tuple[list[Reward], dict[str, Any]]] = {}
    for index, entry in enumerate(view["evaluation"]["datasets"]):
        key = f"evaluation.datasets[{index}]"
        name = dataset_name(entry, key)
        if entry["score"]:
            scores[name] = (
                _rewards(entry["score"], view, f"{key}.score"),
                sampling_of(entry["generate"], f"{key}.generate"),
            )
        for part in ("prompts", "select") if entry["score"] else ("prompts", "select", "generate"):
            problem = "is of a dataset that is trained on; an evaluation has a path, and score"
            require(entry[part] is None, f"{key}.{part}", problem)
        inputs[name] = data.transform(entry, view, key, PROMPTS_SHAPE if entry["score"] else "any")
    for name, mixed in plan.mixed.items():
        if has_held_out(mixed):
            inputs[f"held-out {name}"] = mixed
    prompts = view["evaluation"]["prompts"]
    if prompts is not None:
        require(PROMPTS not in inputs, "evaluation.datasets", f"the name {PROMPTS!r} is that of evaluation.prompts")
    pairs = {key: rows for key, rows in inputs.items() if key not in scores and _may_be_pairs(rows)}
    for name, model in models.items():
        ranks = name != "base" and not _answers(plan.pipeline, name)
        base = base_model if name == "base" else plan.bases[name]
        # A mix has the tokens of its own base model.
        own = {
            key: rows
            for key, rows in (pairs if ranks else inputs).items()
            if rows.kind != "mix" or plan.bases[key.removeprefix("held-out ")] is base
        }
        if own or (prompts is not None and not ranks):
            found = _evaluation(plan.pipeline, name, model, own, {} if ranks else scores, data, prompts=not ranks)
            plan.evaluated[name] = plan.add(found)
    _add_lm_eval(
        plan, data, {name: one for name, one in models.items() if name == "base" or _answers(plan.pipeline, name)}
    )
    graph = {**{f"train_{name}": stage for name, stage in plan.trained.items()}}
    graph |= {f"export_{name}": stage for name, stage in plan.exported.items()}
    graph |= {f"evaluate_{name}": stage for name, stage in plan.evaluated.items()}
    graph |= {f"lm_eval_{name}": stage for name, stage in plan.lm_evaluated.items()}
    # Named by the run, which its page names, too: a run of another name has a page of its own.
    runtime = {"run_name": plan.run_name, "shared": bool(plan.pipeline.run.name), "stages": plan.pipeline.stages}
    plan.report = plan.add(Stage("report", plan.run_name, config={}, inputs=graph, runtime=runtime))


def _answers(pipeline: Pipeline, name: str) -> bool:
    """Whether a stage's model writes answers, which a reward model does not."""
    return methods.answers(pipeline.views[name]["method"])


def _may_be_pairs(rows: Stage) -> bool:
    """Whether rows, or those of a mix, can be pairs; only the job sees those of a dataset."""
    return rows.kind != "mix" or bool(rows.config["rows"] == "preference")


def _rewards(entries: list[Any], view: dict[str, Any], key: str) -> list[Reward]:
    found = rewards_of(entries, view, key)
    for index, reward in enumerate(found):
        needs = any(parameter.arg == "model" for parameter in reward.parameters)
        problem = f"{reward.name} needs a model of its own; an evaluation has rewards without one"
        require(not needs, f"{key}[{index}].reward", problem)
    return found


def _evaluation(
    pipeline: Pipeline,
    name: str,
    model: Stage,
    rows: dict[str, Stage],
    scores: dict[str, tuple[list[Reward], dict[str, Any]]],
    data: DataStages,
    prompts: bool,
) -> Stage:
    view = pipeline.last
    config = {key: view["evaluation"][key] for key in ("max_samples", "max_new_tokens")}
    config["chat_template"] = data.files.chat_template(view["data"]["chat_template"])
    runtime: dict[str, Any] = {"batch_size": view["evaluation"]["batch_size"]}
    if scores:
        config["score"] = {
            dataset: {
                "rewards": [[one.source.name, one.source.digest, one.arguments, one.weight] for one in rewards],
                "sampling": sampling,
            }
            for dataset, (rewards, sampling) in scores.items()
        }
        runtime["score"] = {
            dataset: [[str(one.source.file), one.limit_seconds] for one in rewards]
            for dataset, (rewards, _) in scores.items()
        }
    if prompts and view["evaluation"]["prompts"] is not None:
        file = Path(view["evaluation"]["prompts"]).expanduser()
        config["prompts"], runtime["prompts"] = data.files.checked(file, read_prompts), str(file)
    return Stage("evaluate", _label(pipeline, name, model), config, {"model": model, **rows}, runtime=runtime)


def _label(pipeline: Pipeline, name: str, model: Stage) -> str:
    return str(pipeline.views[name]["method"]) if name != "base" else f"base-{model.label}"


def _add_lm_eval(plan: Plan, data: DataStages, models: dict[str, Stage]) -> None:
    """The tasks, looked up and fetched once, and every model on them."""
    view = plan.pipeline.last
    section = view["evaluation"]["lm_eval"]
    if not section["tasks"]:
        return
    _check_lm_eval(section)
    folder = Path(section["include_path"]).expanduser() if section["include_path"] is not None else None
    content = data.files.checked(folder, _check_tasks) if folder else None
    runtime = {
        "include_path": str(folder) if folder else None,
        "offline": view["offline"],
        "trust_remote_code": view["model"]["trust_remote_code"],
    }
    chosen = {"tasks": section["tasks"], "include_path": content}
    tasks = plan.add(Stage("download_tasks", "lm_eval", chosen, runtime=runtime))
    config = {key: section[key] for key in ("num_fewshot", "limit", "seed", "log_samples", "apply_chat_template")}
    if section["apply_chat_template"]:
        config["fewshot_as_multiturn"] = section["fewshot_as_multiturn"]
        config["chat_template"] = data.files.chat_template(view["data"]["chat_template"])
    runtime = {**runtime, "batch_size": section["batch_size"]}
    installed = importlib.util.find_spec("lm_eval") is not None
    for name, model in models.items():
        label = _label(plan.pipeline, name, model)
        stage = Stage("lm_eval", label, config, {"model": model, "tasks": tasks}, runtime=runtime)
        plan.lm_evaluated[name] = plan.add(stage)
        require(
            installed or (plan.base / stage.manifest).is_file(),
            f"{_LM_EVAL}.tasks",
            "needs lm_eval, which is not installed here; pip install lm-eval==0.4.13 (the extra `evaluation`), or give no tasks",
        )


def _check_lm_eval(section: dict[str, Any]) -> None:
    for key, holds, expected in (
        ("num_fewshot", section["num_fewshot"] is None or section["num_fewshot"] >= 0, "0 or more, or null"),
        ("limit", section["limit"] is None or section["limit"] > 0, "a number of rows, a share below 1, or null"),
        ("batch_size", _is_batch_size(section["batch_size"]), "1 or more, or auto"),
    ):
        require(holds, f"{_LM_EVAL}.{key}", f"found {section[key]!r}, expected {expected}")


def _check_tasks(folder: Path) -> None:
    key = f"{_LM_EVAL}.include_path"
    require(folder.is_dir(), key, f"{folder}: no such folder (relative to {Path.cwd()})")
    files = [path for path in files_below(folder) if path.suffix == ".yaml"]
    require(bool(files), key, f"{folder}: has no task file, *.yaml")
    for file in files:  # lm_eval passes over what it cannot read
        try:
            yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, ValueError, OSError) as error:
            raise ConfigError(key, f"{file}: is no YAML ({error})") from None


def _is_batch_size(size: Any) -> bool:
    if isinstance(size, str):
        return re.fullmatch(r"auto(:\d+)?", size) is not None
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1


def add_comparison(graph: Graph, name: str) -> None:
    """The page of several runs: the keys in which they differ, and what came of it."""
    plans = graph.plans.items()
    keys = list(dict.fromkeys(key for _, plan in plans for key in plan.pipeline.run.values))
    runs = [[run_name, {key: plan.pipeline.value(key) for key in keys}] for run_name, plan in plans]
    reports = {run_name: plan.report for run_name, plan in plans if plan.report is not None}
    stage = Stage("compare", name, config={"runs": runs}, inputs=reports, runtime={"shared": True})
    graph.comparison = graph.add(stage, graph.first)
