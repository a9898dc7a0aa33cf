"""Stages of a dataset that a model writes: prompts, generate in shards, score by each reward, select."""

from typing import TYPE_CHECKING, Any

from post_training import methods
from post_training.config.names import dataset_name
from post_training.core.errors import ConfigError, at_least, did_you_mean, require
from post_training.data.rows import PROMPTS
from post_training.on_policy.answers import SCORE, SHARD
from post_training.plan.generated_keys import check_entry, check_sampling, sampling_keys, select_keys, server_keys
from post_training.plan.held_out import has_held_out
from post_training.plan.models import ModelStages
from post_training.plan.rewards import Reward, rewards_of
from post_training.plan.sources import Sources
from post_training.plan.stage import Stage

if TYPE_CHECKING:
    from post_training.plan.graph import Plan

# Arguments of rewards that say where and how fast, not what.
_FAST = ("batch_size", "url", "concurrency", "api_key_variable", "request_seconds", "max_retries")


class OnPolicy:
    """Adds the stages of generated datasets to a plan."""

    def __init__(self, plan: "Plan", data: Sources, models: ModelStages) -> None:
        self.plan, self.data, self.models = plan, data, models

    def rows(self, entry: dict[str, Any], view: dict[str, Any], key: str, shape: str, base_model: Stage) -> Stage:
        """A dataset's rows, made of a model's answers."""
        check_entry(entry, key)
        name = dataset_name(entry, key)
        rewards = rewards_of(entry["score"], view, f"{key}.score")
        problem = "no reward; give a list such as [{reward: exact_match, reference: answer}]"
        require(bool(rewards), f"{key}.score", problem)
        select = select_keys(entry["select"], shape, f"{key}.select")
        reads_margin = not select.get("margin") or not methods.answers(view["method"])
        require(reads_margin, f"{key}.select.margin", f"is read by reward models alone; {view['method']} has none")
        prompts = self._prompts(entry["prompts"], name, view, f"{key}.prompts")
        shards, answers = self._generate(entry["generate"], name, prompts, view, f"{key}.generate", base_model)
        enough = shape != "preference" or entry["generate"]["n"] >= 2
        problem = f"found {entry['generate']['n']}, expected 2 or more: a pair takes two answers"
        require(enough, f"{key}.generate.n", problem)
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
        at_least(1, section["rows"], f"{key}.rows")
        if section["dataset"] is not None:
            require(not section["path"], f"{key}.path", "is given beside dataset; give one of them")
            mixed = self._mix_with(section["dataset"], f"{key}.dataset")
            inputs["rows"] = mixed.inputs[section["dataset"]].inputs["rows"]
            if has_held_out(mixed):
                inputs["held_out"] = mixed
        else:
            problem = "is empty; give files or an id, or with dataset a dataset's name"
            require(bool(section["path"]), f"{key}.path", problem)
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
            problem = f"found {dataset!r}, expected a dataset of an earlier stage. {did_you_mean(dataset, offered)}"
            raise ConfigError(key, problem)
        return found[0]

    def _generate(
        self, section: dict[str, Any], name: str, prompts: Stage, view: dict[str, Any], key: str, base_model: Stage
    ) -> tuple[dict[str, Stage], str]:
        """The shards by their name among inputs, and the fingerprint of all their answers, whatever their number."""
        check_sampling(section, key)
        server = server_keys(section["server"], f"{key}.server", view["slurm"]["generate"]["server_command"])
        inputs, own = {"prompts": prompts}, {}
        if server is not None and server["url"] is not None:
            require(bool(section["model"]), f"{key}.model", "is missing; give the name of the server's model")
            own["model_name"] = section["model"]
        else:
            model, of_pipeline = self._model(section["model"], view, f"{key}.model", base_model)
            self._check_kind(section["model"], True, f"{key}.model")
            inputs["model"] = model
            template = self.data.files.chat_template(view["data"]["chat_template"]) if of_pipeline else None
            own["chat_template"] = template if server is None else None
        sampling = sampling_keys(section) | {"max_new_tokens": section["max_new_tokens"]}
        config = {"n": section["n"], "sampling": sampling, **own, **({"engine": "server"} if server else {})}
        runtime = {"batch_size": section["batch_size"], **({"server": server} if server else {})}
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
            named = arguments.pop("model")
            model, _ = self._model(named, view, f"{key}.model", base_model)
            if reward.source.name == "reward_model":
                self._check_kind(named, False, f"{key}.model")
            inputs["reward_model"], identity["reward_model"] = model, model.fingerprint
        fast = {part: arguments.pop(part) for part in _FAST if part in arguments}
        config = {"reward": reward.source.name, "arguments": arguments, "source": reward.source.digest}
        runtime = {"file": str(reward.source.file), "arguments": fast, "limit_seconds": reward.limit_seconds}
        kind = "score_model" if place == "gpu" else "score"
        return self.data.add(Stage(kind, f"{name}-{reward.name}", config, inputs, runtime, identity))

    def _check_kind(self, named: str, answers: bool, key: str) -> None:
        """Refuse a stage whose model cannot do what it is named for."""
        if named == "base" or named in self.plan.exported:
            can = named == "base" or methods.answers(self.plan.pipeline.views[named]["method"])
            expected = "a model that answers" if answers else "a stage with method reward"
            require(can == answers, key, f"found {named}, expected {expected}, or another model's id or folder")

    def _model(self, named: Any, view: dict[str, Any], key: str, base_model: Stage) -> tuple[Stage, bool]:
        """A model by `base`, a stage's name, an id or a folder; and whether it is asked in the pipeline's chat template."""
        problem = f"found {named!r}, expected base, a stage's name, an id or a folder"
        require(isinstance(named, str) and bool(named), key, problem)
        if named == "base" or named in self.plan.exported:
            return (base_model if named == "base" else self.plan.exported[named]), True
        other = {**view["model"], "name_or_path": named, "revision": None, "from_scratch": None}
        return self.models.model(other, view["offline"], key), False
