"""Configuration -> plan: training, and what it is made from and makes, stage by stage."""

from functools import partial
from pathlib import Path
from typing import Any

from post_training import methods
from post_training.config.load import Pipeline
from post_training.config.names import dataset_name
from post_training.core.errors import ConfigError, require
from post_training.core.fingerprint import LONGEST_NAME
from post_training.models.parts import NEW_KEYS
from post_training.plan.checks import check_paths, check_view
from post_training.plan.data import DataStages
from post_training.plan.evaluation import add_comparison, add_evaluations
from post_training.plan.files import Files
from post_training.plan.graph import Graph, Plan
from post_training.plan.held_out import KEYS as HELD_OUT_KEYS
from post_training.plan.held_out import check_held_out
from post_training.plan.models import ModelStages, model_label
from post_training.plan.on_policy import OnPolicy
from post_training.plan.preflight import add_preflights, add_probes
from post_training.plan.publication import add_publication, check_publish, check_repositories
from post_training.plan.stage import Export, Stage

# Keys of the training section that say how fast, not what.
_SPEED_KEYS = ("per_device_train_batch_size", "gradient_checkpointing", "use_liger_kernel", "deterministic")


def make_plan(pipeline: Pipeline) -> Plan:
    """Plan every stage of one run. Reads local data and model files for their hashes; writes nothing of note."""
    (plan,) = make_graph([pipeline]).plans.values()
    return plan


def make_graph(pipelines: list[Pipeline]) -> Graph:
    """Plan every stage of all runs of a configuration, which have their folders in common."""
    view = pipelines[0].last
    check_paths(view)
    graph = Graph(Path(view["paths"]["debug_base"] if view["debug"]["enabled"] else view["paths"]["output_base"]))
    files = Files(graph.base, view["recorded_files"])
    for pipeline in pipelines:
        with pipeline.run.error_context():
            plan = _plan_run(pipeline, graph, files)
        _check_other(plan, graph)
        graph.plans[plan.run_name] = plan
    files.check_offline()
    if len(graph.plans) > 1:
        name = f"{_common_name(pipelines[0])}-comparison"
        require(name not in graph.named, "runs", f"the link {name} is the page of all runs; rename the run")
        add_comparison(graph, name)
    check_repositories(list(graph.plans.values()))
    add_preflights(graph)
    return graph


def _plan_run(pipeline: Pipeline, graph: Graph, files: Files) -> Plan:
    for name in pipeline.stages:
        check_view(name, pipeline)
    check_publish(pipeline)
    plan = Plan(pipeline, graph, "")
    planner = _Planner(plan, files)
    for name in pipeline.stages:
        planner.add_stage(name)
    plan.run_name = "-".join(filter(None, [_common_name(pipeline), pipeline.run.name]))
    for name, exported in plan.exported.items():
        exported.runtime.setdefault("title", plan.title(name))  # of a model that runs share, the first one's
    add_evaluations(plan, planner.data, plan.bases[pipeline.stages[-1]])
    add_publication(plan)
    add_probes(plan)
    return plan


def _common_name(pipeline: Pipeline) -> str:
    """The name given, or one from the model and the first stage's data mix, with room for what follows it."""
    view, first = pipeline.last, pipeline.views[pipeline.stages[0]]
    more = [f"-{word}" for word in (pipeline.run.name, max(pipeline.stages, key=len)) if word]
    room = LONGEST_NAME - sum(map(len, more))
    name = view["run_name"]
    if name is None:
        names = [dataset_name(entry, "data.datasets") for entry in first["data"]["datasets"] if entry["weight"] > 0]
        others = f"-and-{len(names) - 2}-more" if len(names) > 2 else ""
        name = f"{model_label(view['model'])}-{'-'.join(names[:2])}{others}"
        name = name[: max(0, min(90, room))].rstrip("-._")
    require(
        0 < len(name) <= room,
        "run_name",
        f"{name}{''.join(more)} is longer than {LONGEST_NAME} characters; give a shorter one, or short names under runs",
    )
    return str(name)


def _check_other(plan: Plan, graph: Graph) -> None:
    """Refuse a run that would do nothing of its own, and a link that two runs would want."""
    assert plan.report is not None
    same, run = graph.distinct.setdefault(plan.report.fingerprint, plan), plan.pipeline.run
    if same is not plan:
        other = same.pipeline.run
        written = {**other.written, **run.written}
        differ = [key for key in written if run.values.get(key) != other.values.get(key)]
        raise ConfigError(
            written[differ[0]] if differ else f"runs.{run.name}",
            f"the runs {other.name} and {run.name} are the same, stage by stage: nothing in which they differ decides a "
            "result; leave one out",
        )
    for name in plan.links():
        other_plan = graph.named.setdefault(name, plan)
        problem = f"{run.name} and {other_plan.pipeline.run.name} both want the link {name}; rename one"
        require(other_plan is plan, "runs", problem)


class _Planner:
    """Adds the stages of one pipeline to a plan."""

    def __init__(self, plan: Plan, files: Files) -> None:
        self.plan = plan
        self.views = plan.pipeline.views
        self.models = ModelStages(plan.add, files)
        self.data = DataStages(plan.add, files)
        self.on_policy = OnPolicy(plan, self.data, self.models)

    def add_stage(self, name: str) -> None:
        """Data, training and export of one stage of the configuration."""
        view, bases = self.views[name], self.plan.bases
        parent = view[view["method"]]["init_from"]
        if parent == "base":
            start = self.models.model(view["model"], view["offline"], "model", view["data"]["chat_template"])
            bases[name] = start
        else:
            self._check_same_as_parent(name, parent)
            start, bases[name] = self.plan.exported[parent], bases[parent]
        generated = partial(self.on_policy.rows, base_model=bases[name])
        mixed = self.plan.mixed[name] = self.data.mix(view, bases[name], generated)
        check_held_out(name, view, mixed)
        kernel = self.models.kernel(view)
        inputs = {"model": start, "data": mixed, **kernel, **self._reference(view, start, mixed, kernel)}
        train = self.plan.trained[name] = self.plan.add(self._train(view, inputs))
        runtime = {"max_shard_size": view["export"]["max_shard_size"]}
        export = Export("export", "model", {"method": view["method"]}, {"train": train, "data": mixed}, runtime)
        self.plan.exported[name] = self.plan.add(export)

    def _reference(
        self, view: dict[str, Any], start: Stage, mixed: Stage, kernel: dict[str, Stage]
    ) -> dict[str, Stage]:
        """What training needs besides model and rows: stored log-probabilities, or another model to compute them with."""
        method = view["method"]
        name, key = view[method].get("ref_model_name_or_path"), f"{view['stage']}.ref_model_name_or_path"
        other = {**view["model"], "name_or_path": name, "revision": None, "from_scratch": None}
        model = self.plan.exported.get(name) if name is not None else None
        if model is None and name is not None:
            model = self.models.model(other, view["offline"], key)
        decides = methods.stored_reference(view)
        if decides is None:
            return {"reference_model": model} if model else {}
        config = {
            "method": method,
            "max_seq_length": view[method]["max_seq_length"],
            "model": {key: view["model"][key] for key in ("dtype", "trust_remote_code")},
            **decides,
        }
        if view["model"]["lora"] is not None and view["model"]["dtype"] != "float32":
            # Beside adapters the weights are loaded in model.dtype, which rounds otherwise than float32 weights do.
            config["weights"] = view["model"]["dtype"]
        if view["model"]["quantization"] is not None:
            config["quantization"] = view["model"]["quantization"]
        stored = Stage(
            kind="reference",
            label=method,
            config=config,
            inputs={"model": model or start, "data": mixed, **kernel},
            runtime={"pipeline": self.plan.pipeline.frozen(view["stage"])},
        )
        return {"reference": self.plan.add(stored)}

    def _train(self, view: dict[str, Any], inputs: dict[str, Stage]) -> Stage:
        method = view["method"]
        module = methods.load(method)
        not_own = ("init_from", "ref_model_name_or_path", *getattr(module, "SPEED_KEYS", ()))
        own = {key: value for key, value in view[method].items() if key not in not_own}
        speed = set(_SPEED_KEYS)
        if methods.micro_batch_decides(view):
            speed.remove("per_device_train_batch_size")
        training = {key: value for key, value in view["training"].items() if key not in speed}
        stops_early, checkpoint = training["early_stopping"], view["export"]["checkpoint"]
        if stops_early is None:
            del training["early_stopping"]
        by_held_out: dict[str, Any] = {}
        if stops_early is not None or checkpoint == "best":
            by_held_out = {
                "checkpoint": checkpoint,
                "evaluation": {key: view["evaluation"][key] for key in HELD_OUT_KEYS},
            }
        adapters = {key: view["model"][key] for key in ("lora", "quantization") if view["model"][key] is not None}
        if "lora" in adapters:
            adapters["lora"] = {k: v for k, v in adapters["lora"].items() if k not in NEW_KEYS or v is not None}
        config = {
            "method": method,
            method: own,
            "training": training,
            "model": {key: view["model"][key] for key in ("dtype", "trust_remote_code")} | adapters,
            **by_held_out,
        }
        # By method: what a stage is called decides nothing.
        label = f"{method}-{model_label(view['model'])}"
        frozen = self.plan.pipeline.frozen(view["stage"])
        return Stage(kind="train", label=label, config=config, inputs=inputs, runtime={"pipeline": frozen})

    def _check_same_as_parent(self, name: str, parent: str) -> None:
        ours, theirs = self.views[name], self.views[parent]
        require(
            methods.answers(theirs["method"]) or not methods.answers(ours["method"]),
            f"{name}.init_from",
            f"found {parent}, a reward model, which has no output layer for tokens; start from a model that answers",
        )
        for section, key in (("model", "name_or_path"), ("model", "from_scratch"), ("data", "chat_template")):
            require(
                ours[section][key] == theirs[section][key],
                f"{name}.{section}.{key}",
                f"differs from {parent}'s, but {name} starts from {parent}'s model, whose tokenizer and template it keeps; "
                f"give it once, under {section}, or set {name}.init_from=base",
            )
