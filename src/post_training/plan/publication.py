"""What becomes of a model after its evaluation: a card that tells it, and a repository on the Hub."""

import re
from typing import Any

from post_training.config.load import Pipeline
from post_training.core.errors import ConfigError, require
from post_training.core.fingerprint import slug
from post_training.plan.graph import Plan
from post_training.plan.stage import Stage

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LONGEST_HUB_ID = 96


def check_publish(pipeline: Pipeline) -> None:
    """Refuse, before anything runs, what could not be published."""
    section = pipeline.last["publish"]
    if not section["push_to_hub"]:
        return
    found = section["hub_model_id"]
    problem = f"found {found!r}, expected org/name of letters, digits, '-', '_' and '.'"
    require(isinstance(found, str) and _is_hub_id(found), "publish.hub_model_id", problem)
    problem = "true, but offline is true; set offline=false (jobs on Slurm nodes stay offline)"
    require(not pipeline.last["offline"], "publish.push_to_hub", problem)


def add_publication(plan: Plan) -> None:
    """A card for each model that is measured, and the last model on the Hub where that is asked for."""
    for name, exported in plan.exported.items():
        inputs = {"export": exported}
        for kind, found in (("evaluate", plan.evaluated), ("lm_eval", plan.lm_evaluated)):
            if name in found and len(found[name].inputs) > 1:  # of answers to prompts alone a card tells nothing
                inputs |= {f"base {kind}": found["base"], f"own {kind}": found[name]}
        if len(inputs) > 1:
            plan.cards[name] = plan.add(
                Stage("card", plan.trained[name].label, {}, inputs, {"title": plan.title(name)})
            )
    section: dict[str, Any] = plan.pipeline.last["publish"]
    if section["push_to_hub"]:
        last = plan.pipeline.stages[-1]
        inputs = {"export": plan.exported[last], **({"card": plan.cards[last]} if last in plan.cards else {})}
        config = {key: section[key] for key in ("hub_model_id", "private")}
        plan.published[last] = plan.add(Stage("push", slug(section["hub_model_id"]), config, inputs))


def check_repositories(plans: list[Plan]) -> None:
    """Refuse two runs that would overwrite each other's model."""
    taken: dict[str, Stage] = {}
    for stage in (stage for plan in plans for stage in plan.published.values()):
        if taken.setdefault(stage.config["hub_model_id"], stage) is not stage:
            raise ConfigError(
                "publish.hub_model_id",
                f"several runs would be pushed to {stage.config['hub_model_id']}; give each its own, or choose one with run",
            )


def _is_hub_id(text: str) -> bool:
    plain = _HUB_ID.fullmatch(text) is not None and "--" not in text and ".." not in text
    return plain and len(text) <= _LONGEST_HUB_ID and not text.endswith((".git", "-", "."))
