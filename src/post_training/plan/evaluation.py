"""Stages after training: evaluations of every model, and the report. Light."""

from post_training.config.load import Pipeline
from post_training.plan.data import DataStages, dataset_name
from post_training.plan.graph import Graph
from post_training.plan.pipeline import Plan
from post_training.plan.stage import Stage


def add_evaluations(plan: Plan, data: DataStages, base_model: Stage) -> None:
    """Each exported model, and the one that the first stage starts from, on the held-out rows."""
    view = plan.pipeline.last
    models = {"base": base_model, **plan.exported}
    inputs: dict[str, Stage] = {}
    for index, entry in enumerate(view["evaluation"]["datasets"]):
        key = f"evaluation.datasets[{index}]"
        inputs[dataset_name(entry, key)] = data.transform(entry, view, key, "any")
    for name, mixed in plan.mixed.items():
        if mixed.config["eval_fraction"] or any(part.startswith("eval:") for part in mixed.inputs):
            inputs[f"held-out {name}"] = mixed
    if inputs:
        for name, model in models.items():
            plan.evaluated[name] = plan.add(_evaluation(plan.pipeline, name, model, inputs, data))
    graph = {**{f"train_{name}": stage for name, stage in plan.trained.items()}}
    graph |= {f"export_{name}": stage for name, stage in plan.exported.items()}
    graph |= {f"evaluate_{name}": stage for name, stage in plan.evaluated.items()}
    label = list(plan.trained.values())[-1].label
    plan.report = plan.add(Stage("report", "reports", label, config={}, inputs=graph))


def _evaluation(pipeline: Pipeline, name: str, model: Stage, rows: dict[str, Stage], data: DataStages) -> Stage:
    view = pipeline.last
    config = {key: view["evaluation"][key] for key in ("max_samples", "max_new_tokens")}
    config["chat_template"] = data.files.chat_template(view["data"]["chat_template"])
    runtime = {"batch_size": view["evaluation"]["batch_size"]}
    label = pipeline.views[name]["method"] if name != "base" else f"base-{model.label}"
    return Stage("evaluate", "evaluations", label, config, {"model": model, **rows}, runtime=runtime)


def add_comparison(graph: Graph, name: str) -> None:
    """The page of several runs: the keys in which they differ, and what came of it."""
    plans = graph.plans.items()
    keys = list(dict.fromkeys(key for _, plan in plans for key in plan.pipeline.run.values))
    runs = [[run_name, {key: plan.pipeline.value(key) for key in keys}] for run_name, plan in plans]
    reports = {run_name: plan.report for run_name, plan in plans if plan.report is not None}
    stage = Stage("compare", "comparisons", name, config={"runs": runs}, inputs=reports)
    graph.comparison = graph.add(stage, graph.first)
