"""Configuration -> plan: training, and what it is made from and makes, stage by stage. Light."""

from pathlib import Path
from typing import Any

from post_training import methods
from post_training.config.load import Pipeline
from post_training.fingerprint import FileHashes
from post_training.plan.checks import check_paths, check_view, require
from post_training.plan.data import DataStages, dataset_name
from post_training.plan.evaluation import add_evaluations
from post_training.plan.models import ModelStages, model_label
from post_training.plan.pipeline import Plan
from post_training.plan.preflight import add_preflights
from post_training.plan.stage import InRunDirectory, Stage

# Keys of the training section that say how fast, not what.
_SPEED_KEYS = ("per_device_train_batch_size", "gradient_checkpointing", "use_liger_kernel")


def make_plan(pipeline: Pipeline) -> Plan:
    """Plan every stage. Reads local data and model files for their hashes; writes nothing of note."""
    view = pipeline.last
    base = Path(view["paths"]["debug_base"] if view["debug"]["enabled"] else view["paths"]["output_base"])
    check_paths(view)
    hashes = FileHashes(base / ".file_hashes.json")
    for name in pipeline.stages:
        check_view(name, pipeline)
    plan = Plan(pipeline, base, "")
    planner = _Planner(plan, hashes)
    for name in pipeline.stages:
        planner.add_stage(name)
    plan.run_name = view["run_name"] or planner.auto_name(view)
    assert planner.base_model is not None
    add_evaluations(plan, planner.data, planner.base_model)
    add_preflights(plan)
    return plan


class _Planner:
    """Adds the stages of one pipeline to a plan."""

    def __init__(self, plan: Plan, hashes: FileHashes) -> None:
        self.plan = plan
        self.views = plan.pipeline.views
        self.models = ModelStages(plan.add, hashes)
        self.data = DataStages(plan.add, hashes)
        self.base_model: Stage | None = None

    def add_stage(self, name: str) -> None:
        """Data, training and export of one stage of the configuration."""
        view = self.views[name]
        parent = view[view["method"]]["init_from"]
        if parent == "base":
            self.base_model = self.models.model(view["model"], view["offline"], "model", view["data"]["chat_template"])
            start = self.base_model
        else:
            self._check_same_as_parent(name, parent)
            start = self.plan.exported[parent]
        assert self.base_model is not None
        mixed = self.plan.mixed[name] = self.data.mix(view, self.base_model)
        inputs = {"model": start, "data": mixed, **self._reference(view, start, mixed)}
        train = self.plan.trained[name] = self.plan.add(self._train(view, inputs))
        export = Stage(
            kind="export",
            folder=train.directory,
            label="model",
            config={"method": view["method"]},
            inputs={"train": train, "data": mixed},
            runtime={"max_shard_size": view["export"]["max_shard_size"]},
        )
        self.plan.exported[name] = self.plan.add(InRunDirectory(**export.__dict__))

    def _reference(self, view: dict[str, Any], start: Stage, mixed: Stage) -> dict[str, Stage]:
        """What training needs besides model and rows: stored log-probabilities, or another model to compute them with."""
        method = view["method"]
        name, key = view[method].get("ref_model_name_or_path"), f"{view['stage']}.ref_model_name_or_path"
        other = {**view["model"], "name_or_path": name, "revision": None, "from_scratch": None}
        model = self.models.model(other, view["offline"], key) if name is not None else None
        decides = getattr(methods.load(method), "stored_reference", lambda _: None)(view)
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
        stored = Stage(
            kind="reference",
            folder="data/reference",
            label=method,
            config=config,
            inputs={"model": model or start, "data": mixed},
            runtime={"pipeline": self.plan.pipeline.frozen(view["stage"])},
        )
        return {"reference": self.plan.add(stored)}

    def _train(self, view: dict[str, Any], inputs: dict[str, Stage]) -> Stage:
        method = view["method"]
        module = methods.load(method)
        not_own = ("init_from", "ref_model_name_or_path", *getattr(module, "SPEED_KEYS", ()))
        own = {key: value for key, value in view[method].items() if key not in not_own}
        speed = set(_SPEED_KEYS)
        if getattr(module, "micro_batch_decides", lambda _: False)(view):
            speed.remove("per_device_train_batch_size")
        training = {key: value for key, value in view["training"].items() if key not in speed}
        lora = {"lora": view["model"]["lora"]} if view["model"]["lora"] is not None else {}
        config = {
            "method": method,
            method: own,
            "training": training,
            "model": {key: view["model"][key] for key in ("dtype", "trust_remote_code")} | lora,
        }
        # By method: what a stage is called decides nothing.
        label = f"{method}-{model_label(view['model'])}"
        frozen = self.plan.pipeline.frozen(view["stage"])
        return Stage(kind="train", folder="", label=label, config=config, inputs=inputs, runtime={"pipeline": frozen})

    def _check_same_as_parent(self, name: str, parent: str) -> None:
        ours, theirs = self.views[name], self.views[parent]
        for section, key in (("model", "name_or_path"), ("model", "from_scratch"), ("data", "chat_template")):
            require(
                ours[section][key] == theirs[section][key],
                f"{name}.{section}.{key}",
                f"differs from {parent}'s, but {name} starts from {parent}'s model, whose tokenizer and template it keeps; "
                f"give it once, under {section}, or set {name}.init_from=base",
            )

    def auto_name(self, view: dict[str, Any]) -> str:
        """Run name from the model and the first stage's data mix."""
        first = self.views[self.plan.pipeline.stages[0]]
        names = [dataset_name(entry, "data.datasets") for entry in first["data"]["datasets"] if entry["weight"] > 0]
        more = f"-and-{len(names) - 2}-more" if len(names) > 2 else ""
        return f"{model_label(view['model'])}-{'-'.join(names[:2])}{more}"[:90].rstrip("-._")
