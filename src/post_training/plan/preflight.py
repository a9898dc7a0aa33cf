"""What precedes the GPU rules: one preflight of all trainings on the same data, and a probe of each.

Their fingerprints cover everything that they look at, also where and how fast a run runs. Nothing depends on
them but rules whose own results are still missing: a change of the batch a device holds makes no training stale.
"""

from typing import Any

from post_training.config.deepspeed import merged_config
from post_training.core.fingerprint import digest
from post_training.plan.graph import Graph, Plan
from post_training.plan.stage import Stage

LOCAL, SLURM = "local", "slurm"
"""Where the GPU rules will run, which decides what is checked."""
# Sections that say nothing about what is checked.
_NOT_CHECKED = ("run_name", "evaluation", "export", "debug", "logging", "publish", "recorded_files")


def add_preflights(graph: Graph) -> None:
    """A preflight for either place, of all runs whose data and models are the same: a process spends seconds on its imports,
    and then little on each run of a sweep. A training on what a trained model wrote has one of its own, made when that is there."""
    groups: dict[tuple[str, ...], list[tuple[Plan, list[str]]]] = {}
    for plan in graph.plans.values():
        for names in _together(plan):
            alike = tuple(f"{name} {stage.directory}" for name, stage in _inputs(plan, names).items())
            groups.setdefault(alike, []).append((plan, names))
    for members in groups.values():
        first, own_names = members[0]
        inputs, label = _inputs(first, own_names), first.trained[own_names[-1]].label
        trainings: dict[str, dict[str, Any]] = {}
        views: dict[str, dict[str, Any]] = {}
        for plan, names in members:
            for name in names:
                trained = plan.trained[name]
                own = {
                    "run": trained.directory, "stage": name, "pipeline": trained.runtime["pipeline"], "names": [],
                }  # fmt: skip
                trainings.setdefault(trained.directory, own)["names"].append(plan.run_name)
                views.setdefault(trained.directory, plan.pipeline.views[name])
        for place in (LOCAL, SLURM):
            checked = digest({directory: _checked_part(view, place) for directory, view in views.items()})
            config = {"place": place, "trainings": checked}
            stage = Stage("preflight", label, config, inputs, runtime={"trainings": list(trainings.values())})
            for plan, names in members:
                one = plan.add(stage)
                plan.preflights[f"{place} {names[0]}" if _needs_training(plan.mixed[names[0]]) else place] = one


def add_probes(plan: Plan) -> None:
    """A probe of each stage on one device; of none on what a trained model wrote, which a probe would have to wait for."""
    first = _together(plan)[0]
    inputs = _inputs(plan, first)
    for name in first:
        view = plan.pipeline.views[name]
        own = {part.split()[-1]: stage for part, stage in inputs.items() if part.split()[0] == name}
        config = {"steps": view["preflight"]["probe_steps"], "view": digest(_checked_part(view, SLURM))}
        runtime = {"pipeline": plan.trained[name].runtime["pipeline"]}
        label = plan.trained[name].label
        probe = Stage("preflight_probe", label, config, own, runtime=runtime)
        plan.probes[name] = plan.add(probe)


def _together(plan: Plan) -> list[list[str]]:
    """Names of the trainings whose data are there before any training, and then each of the others alone."""
    alone = [name for name in plan.trained if _needs_training(plan.mixed[name])]
    first = [name for name in plan.trained if name not in alone]
    return [*([first] if first else []), *([name] for name in alone)]


def _needs_training(stage: Stage) -> bool:
    return stage.kind == "train" or any(map(_needs_training, stage.inputs.values()))


def _inputs(plan: Plan, names: list[str]) -> dict[str, Stage]:
    """What is there before these trainings: model, data, another reference model and an attention kernel of each."""
    inputs: dict[str, Stage] = {}
    for name in names:
        trained = plan.trained[name]
        inputs |= {f"{name} model": _base_model(trained), f"{name} data": plan.mixed[name]}
        if "reference_model" in trained.inputs and trained.inputs["reference_model"].kind != "export":
            inputs[f"{name} reference_model"] = trained.inputs["reference_model"]
        if "kernel" in trained.inputs:
            inputs[f"{name} kernel"] = trained.inputs["kernel"]
    return inputs


def _base_model(trained: Stage) -> Stage:
    """The model that a chain of trainings begins with: there already, and of the same shape as every later one."""
    model = trained.inputs["model"]
    while model.kind == "export":
        model = model.inputs["train"].inputs["model"]
    return model


def _checked_part(view: dict[str, Any], place: str) -> dict[str, Any]:
    kept = {key: value for key, value in view.items() if key not in _NOT_CHECKED and (key, place) != ("slurm", LOCAL)}
    if "slurm" in kept:  # what generate jobs get is no part of a training
        kept["slurm"] = {key: value for key, value in kept["slurm"].items() if key != "generate"}
    kept["data"] = {key: value for key, value in view["data"].items() if key not in ("num_proc", "filters")}
    kept["data"]["datasets"] = [_without_unused(entry) for entry in kept["data"]["datasets"]]
    kept["data"]["hygiene"] = view["data"]["filters"]  # under its first name, so that finished preflights stay valid
    # A key without a value leaves finished preflights valid.
    kept["model"] = {key: value for key, value in view["model"].items() if key != "quantization" or value is not None}
    # A probe is the same for every seed.
    kept["training"] = {key: value for key, value in view["training"].items() if key != "seed"}
    if view["deepspeed"]["config_path"] is not None:
        kept["deepspeed"] = merged_config(view["deepspeed"])  # a file is what it says
    return kept | {"report_to": view["logging"]["report_to"]}


def _without_unused(entry: dict[str, Any]) -> dict[str, Any]:
    """A dataset without the keys of generated ones where it has none, so that finished preflights stay valid."""
    return {
        key: value for key, value in entry.items() if key not in ("prompts", "generate", "score", "select") or value
    }
