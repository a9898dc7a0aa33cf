"""What precedes the GPU rules: one preflight of all stages, and a probe of each. Light.

Their fingerprints cover everything that they look at, also where and how fast a run runs. Nothing depends on
them but rules whose own results are still missing: a change of the batch a device holds makes no training stale.
"""

from typing import Any

from post_training.fingerprint import digest
from post_training.plan.pipeline import Plan
from post_training.plan.stage import Stage

LOCAL, SLURM = "local", "slurm"
"""Where the GPU rules will run, which decides what must be looked at."""
# Sections that say nothing about what is checked.
_NOT_CHECKED = ("run_name", "evaluation", "export", "debug", "logging", "publish")


def add_preflights(plan: Plan) -> None:
    """A preflight for either place, and a probe of each stage on one device."""
    inputs: dict[str, Stage] = {}
    for name, trained in plan.trained.items():
        inputs |= {f"{name} model": _base_model(trained), f"{name} data": plan.mixed[name]}
        if "reference_model" in trained.inputs:
            inputs[f"{name} reference_model"] = trained.inputs["reference_model"]
    last = list(plan.trained.values())[-1]
    runs = {name: trained.directory for name, trained in plan.trained.items()}
    runtime = {"pipeline": plan.pipeline.frozen(plan.pipeline.stages[-1]), "runs": runs}
    for place in (LOCAL, SLURM):
        views = {name: _looked_at(view, place) for name, view in plan.pipeline.views.items()}
        config = {"place": place, "views": digest(views)}
        plan.preflights[place] = plan.add(Stage("preflight", "preflight", last.label, config, inputs, runtime=runtime))
    for name, view in plan.pipeline.views.items():
        own = {part.split()[-1]: stage for part, stage in inputs.items() if part.split()[0] == name}
        config = {"steps": view["preflight"]["probe_steps"], "view": digest(_looked_at(view, SLURM))}
        runtime = {"pipeline": plan.pipeline.frozen(name)}
        label = plan.trained[name].label
        probe = Stage("preflight_probe", "preflight_probe", label, config, own, runtime=runtime)
        plan.probes[name] = plan.add(probe)


def _base_model(trained: Stage) -> Stage:
    """The model that a chain of trainings begins with: there already, and of the same shape as every later one."""
    model = trained.inputs["model"]
    while model.kind == "export":
        model = model.inputs["train"].inputs["model"]
    return model


def _looked_at(view: dict[str, Any], place: str) -> dict[str, Any]:
    kept = {key: value for key, value in view.items() if key not in _NOT_CHECKED and (key, place) != ("slurm", LOCAL)}
    kept["data"] = {key: value for key, value in view["data"].items() if key != "num_proc"}
    # Replicas of a run, which differ in seeds alone, have one preflight.
    kept["training"] = {key: value for key, value in view["training"].items() if key != "seed"}
    return kept | {"report_to": view["logging"]["report_to"]}
