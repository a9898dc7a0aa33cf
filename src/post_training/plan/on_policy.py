"""Stages of a dataset that a model writes: prompts, generate in shards, score by each reward, select."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from post_training.config.names import dataset_name
from post_training.config.schema.data import DatasetConfig
from post_training.config.schema.on_policy import GenerateConfig, SelectConfig
from post_training.core.errors import ConfigError, did_you_mean, one_of, require
from post_training.data import registry
from post_training.data.registry import TransformSource
from post_training.data.rows import PROMPTS
from post_training.on_policy.answers import SCORE, SHARD
from post_training.plan.models import ModelStages
from post_training.plan.sources import Sources
from post_training.plan.stage import Stage

if TYPE_CHECKING:
    from post_training.plan.graph import Plan

# Keys of a dataset that say where rows come from, and have no meaning for rows that a model writes.
_OF_FILES = ("path", "subset", "split", "revision", "eval_split", "transform")
_OWN = ("prompts", "generate", "score", "select")
# Keys of `select` by the shape of the rows.
_SELECT = {
    "preference": ("pairs", "min_margin", "cut", "seed"),
    "messages": ("best", "threshold", "cut"),
    "unpaired": ("threshold", "cut"),
}
_SPEED = ("shards", "batch_size")


@dataclass(frozen=True)
class Reward:
    """One entry of `score`."""

    name: str
    """Its own in the manifests: the reward's, numbered where one is there twice."""
    weight: float
    source: TransformSource
    arguments: dict[str, Any]

    @property
    def parameters(self) -> list[ast.arg]:
        """What the configuration may give."""
        return self.source.function.args.kwonlyargs


def is_generated(entry: Mapping[str, Any]) -> bool:
    """Whether a dataset of the configuration is written by a model."""
    return entry["generate"] is not None or entry["prompts"] is not None


class OnPolicy:
    """Adds the stages of generated datasets to a plan."""

    def __init__(self, plan: "Plan", data: Sources, models: ModelStages) -> None:
        self.plan, self.data, self.models = plan, data, models

    def rows(self, entry: dict[str, Any], view: dict[str, Any], key: str, shape: str, base_model: Stage) -> Stage:
        """A dataset's rows, made of a model's answers."""
        _check(entry, key)
        name = dataset_name(entry, key)
        rewards = rewards_of(entry["score"], view, f"{key}.score")
        require(
            bool(rewards), f"{key}.score", "no reward; give a list such as [{reward: exact_match, reference: answer}]"
        )
        select = _select(entry["select"], shape, f"{key}.select")
        prompts = self._prompts(entry["prompts"], name, view, f"{key}.prompts")
        shards, answers = self._generate(entry["generate"], name, prompts, view, f"{key}.generate", base_model)
        scores = {
            f"{SCORE}{reward.name}": self._score(
                reward, name, prompts, shards, answers, view, f"{key}.score", base_model
            )
            for reward in rewards
        }
        config = {"rows": shape, "weights": {reward.name: reward.weight for reward in rewards}, **select}
        identity = {"prompts": prompts.fingerprint, "answers": answers}
        identity |= {role: stage.fingerprint for role, stage in scores.items()}
        inputs = {"prompts": prompts, **shards, **scores}
        return self.data.add(Stage("select", name, config, inputs, identity=identity))

    def _prompts(self, section: dict[str, Any], name: str, view: dict[str, Any], key: str) -> Stage:
        inputs: dict[str, Stage] = {}
        require(
            section["rows"] is None or section["rows"] >= 1,
            f"{key}.rows",
            f"found {section['rows']}, expected 1 or more",
        )
        if section["dataset"] is not None:
            require(not section["path"], f"{key}.path", "is given beside dataset; give one of them")
            mixed = self._mix_with(section["dataset"], f"{key}.dataset")
            inputs["rows"] = mixed.inputs[section["dataset"]].inputs["rows"]
            if mixed.config["eval_fraction"] or any(role.startswith("eval:") for role in mixed.inputs):
                inputs["held_out"] = mixed
        else:
            require(
                bool(section["path"]), f"{key}.path", "is empty; give files or an id, or with dataset a dataset's name"
            )
            source = {part: section[part] for part in ("path", "subset", "split", "revision", "transform")}
            inputs["rows"] = self.data.transform({**source, "name": f"{name}-prompts"}, view, key, PROMPTS)
        config = {"rows": section["rows"], "seed": section["seed"]}
        return self.data.add(Stage("prompts", name, config, inputs))

    def _mix_with(self, dataset: str, key: str) -> Stage:
        """The mix of an earlier stage that has a dataset."""
        found = [mixed for mixed in self.plan.mixed.values() if dataset in mixed.inputs]
        if not found:
            offered = [
                name for mixed in self.plan.mixed.values() for name in mixed.inputs if not name.startswith("eval:")
            ]
            raise ConfigError(
                key, f"found {dataset!r}, expected a dataset of an earlier stage. {did_you_mean(dataset, offered)}"
            )
        return found[0]

    def _generate(
        self, section: dict[str, Any], name: str, prompts: Stage, view: dict[str, Any], key: str, base_model: Stage
    ) -> tuple[dict[str, Stage], str]:
        """The shards by their name among inputs, and the fingerprint of all their answers, whatever their number."""
        _check_sampling(section, key)
        model, of_pipeline = self._model(section["model"], view, f"{key}.model", base_model)
        sampling = _sampling(section) | {"max_new_tokens": section["max_new_tokens"]}
        template = self.data.files.chat_template(view["data"]["chat_template"]) if of_pipeline else None
        config = {"n": section["n"], "sampling": sampling, "chat_template": template}
        inputs, runtime = {"prompts": prompts, "model": model}, {"batch_size": section["batch_size"]}
        every = Stage("generate", name, config, inputs).fingerprint
        number = section["shards"]
        shards = [Stage("generate", name, config | {"shard": [i, number]}, inputs, runtime) for i in range(number)]
        return {f"{SHARD}{index}": self.data.add(shard) for index, shard in enumerate(shards)}, every

    def _score(
        self,
        reward: Reward,
        name: str,
        prompts: Stage,
        shards: dict[str, Stage],
        answers: str,
        view: dict[str, Any],
        key: str,
        base_model: Stage,
    ) -> Stage:
        inputs, arguments = {"prompts": prompts, **shards}, dict(reward.arguments)
        identity = {"prompts": prompts.fingerprint, "answers": answers}
        place = reward.source.options.get("place", "cpu")
        if any(parameter.arg == "model" for parameter in reward.parameters):
            model, _ = self._model(arguments.pop("model"), view, f"{key}.model", base_model)
            inputs["reward_model"], identity["reward_model"] = model, model.fingerprint
        fast = {part: arguments.pop(part) for part in ("batch_size",) if part in arguments}
        config = {"reward": reward.source.name, "arguments": arguments, "source": reward.source.digest}
        runtime = {"file": str(reward.source.file), "arguments": fast}
        kind = "score_model" if place == "gpu" else "score"
        return self.data.add(Stage(kind, f"{name}-{reward.name}", config, inputs, runtime, identity))

    def _model(self, named: Any, view: dict[str, Any], key: str, base_model: Stage) -> tuple[Stage, bool]:
        """A model by `base`, a stage's name, an id or a folder; and whether it is asked in the pipeline's chat template."""
        require(
            isinstance(named, str) and bool(named),
            key,
            f"found {named!r}, expected base, a stage's name, an id or a folder",
        )
        if named == "base" or named in self.plan.exported:
            return (base_model if named == "base" else self.plan.exported[named]), True
        other = {**view["model"], "name_or_path": named, "revision": None, "from_scratch": None}
        return self.models.model(other, view["offline"], key), False


def sampling_of(section: dict[str, Any] | None, key: str) -> dict[str, Any]:
    """How an evaluation samples, without its length; greedy where nothing is said. Raises ConfigError for keys of other datasets."""
    if section is None:
        return {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0}
    defaults = {one.name: one.default for one in fields(GenerateConfig)}
    for name, value in section.items():
        fits = name in ("temperature", "top_p", "top_k", "seed") or value == defaults[name]
        require(fits, f"{key}.{name}", "is not of an evaluation, which samples one answer of each model to a prompt")
    _check_sampling({**section, "n": 1}, key)
    return _sampling(section)


def _sampling(section: dict[str, Any]) -> dict[str, Any]:
    if not section["temperature"]:
        return {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0}  # the others decide nothing
    return {part: section[part] for part in ("temperature", "top_p", "top_k", "seed")}


def rewards_of(entries: list[Any], view: dict[str, Any], key: str) -> list[Reward]:
    """The checked entries of `score`. Raises ConfigError for a reward or argument that does not exist."""
    known, found = registry.reward_names(view["data"]["transform_modules"]), list[Reward]()
    for index, entry in enumerate(entries):
        own = f"{key}[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("reward"), str):
            raise ConfigError(own, f"found {entry!r}, expected {{reward: NAME, argument: value}}")
        reward, weight = entry["reward"], entry.get("weight", 1.0)
        if reward not in known:
            more = "(or name your module in data.transform_modules)"
            raise ConfigError(f"{own}.reward", f"no reward named {reward!r}. {did_you_mean(reward, known)} {more}")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        require(is_number and abs(weight) < float("inf"), f"{own}.weight", f"found {weight!r}, expected a number")
        arguments = {name: value for name, value in entry.items() if name not in ("reward", "weight")}
        signature = known[reward].function.args
        offered = [parameter.arg for parameter in signature.kwonlyargs]
        for name in arguments:
            if name not in offered:
                raise ConfigError(f"{own}.{name}", f"unknown argument of {reward}. {did_you_mean(name, offered)}")
        defaults = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
        missing = [
            parameter.arg for parameter, default in defaults if default is None and parameter.arg not in arguments
        ]
        require(not missing, own, f"{reward} needs {', '.join(missing)}")
        same = sum(one.source.name == reward for one in found)
        found.append(Reward(f"{reward}-{same + 1}" if same else reward, float(weight), known[reward], arguments))
    return found


def _check(entry: dict[str, Any], key: str) -> None:
    for own in ("prompts", "generate"):
        require(
            entry[own] is not None,
            f"{key}.{own}",
            "is missing; a dataset that a model writes needs prompts and generate",
        )
    require(bool(entry["name"]), f"{key}.name", "is missing; give the dataset a name")
    defaults = {one.name: one.default for one in fields(DatasetConfig)}
    for other in _OF_FILES:
        require(
            entry[other] == defaults[other],
            f"{key}.{other}",
            "is of rows in files; of what a model writes give prompts",
        )


def _check_sampling(section: dict[str, Any], key: str) -> None:
    for name, holds, expected in (
        ("n", section["n"] >= 1, "1 or more"),
        ("temperature", 0 <= section["temperature"] < float("inf"), "0 or more"),
        ("top_p", 0 < section["top_p"] <= 1, "a probability above 0, up to 1"),
        ("top_k", section["top_k"] >= 0, "0 (all) or more"),
        ("max_new_tokens", section["max_new_tokens"] >= 1, "1 or more"),
        ("shards", 1 <= section["shards"] <= 10_000, "1 to 10000"),
        ("batch_size", section["batch_size"] >= 1, "1 or more"),
    ):
        require(holds, f"{key}.{name}", f"found {section[name]}, expected {expected}")
    repeated = section["n"] > 1 and section["temperature"] == 0
    require(
        not repeated,
        f"{key}.temperature",
        f"found 0, which gives the same answer {section['n']} times; set n=1 or sample",
    )


def _select(given: dict[str, Any] | None, shape: str, key: str) -> dict[str, Any]:
    """The keys that decide for this shape."""
    defaults: dict[str, Any] = {one.name: one.default for one in fields(SelectConfig)}
    section, used = given or defaults, _SELECT[shape]
    for name, value in section.items():
        fits = name in used or value == defaults[name]
        require(fits, f"{key}.{name}", f"is not of this method, whose rows are {shape}; its keys are {', '.join(used)}")
    one_of(section["pairs"], ("best_worst", "best_random", "all_ordered"), f"{key}.pairs")
    one_of(section["cut"], ("drop", "keep"), f"{key}.cut")
    require(section["min_margin"] >= 0, f"{key}.min_margin", f"found {section['min_margin']}, expected 0 or more")
    require(
        section["best"] is None or section["best"] >= 1, f"{key}.best", f"found {section['best']}, expected 1 or more"
    )
    needs = shape != "unpaired" or section["threshold"] is not None
    require(needs, f"{key}.threshold", "is missing; from which score on is an answer desirable?")
    own = {name: section[name] for name in used}
    if shape == "messages" and own["best"] is None and own["threshold"] is None:
        own["best"] = 1
    if shape == "preference" and own["pairs"] != "best_random":
        del own["seed"]
    return own
