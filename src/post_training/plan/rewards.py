"""The entries of `score` as rewards that exist, with arguments that they take."""

import ast
from dataclasses import dataclass
from typing import Any

from post_training.core.errors import ConfigError, did_you_mean, require
from post_training.data import registry
from post_training.data.registry import TransformSource

# Keys of an entry that are no arguments of its reward.
_OF_ENTRY = ("reward", "weight", "limit_seconds")
LIMIT_SECONDS = 60.0
"""How long a reward on the CPU may take for an answer, unless its entry says otherwise."""


@dataclass(frozen=True)
class Reward:
    """One entry of `score`."""

    name: str
    """Its own in the manifests: the reward's, numbered where one is there twice."""
    weight: float
    source: TransformSource
    arguments: dict[str, Any]
    limit_seconds: float | None
    """How long an answer may take; None = as long as it takes. Decides nothing unless it is reached."""

    @property
    def parameters(self) -> list[ast.arg]:
        """What the configuration may give."""
        return self.source.function.args.kwonlyargs


def rewards_of(entries: list[Any], view: dict[str, Any], key: str) -> list[Reward]:
    """The checked entries of `score`. Raises ConfigError for a reward or argument that does not exist."""
    known, found = registry.reward_names(view["data"]["transform_modules"]), list[Reward]()
    for index, entry in enumerate(entries):
        own = f"{key}[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("reward"), str):
            raise ConfigError(own, f"found {entry!r}, expected {{reward: NAME, argument: value}}")
        reward, weight = entry["reward"], entry.get("weight", 1.0)
        problem = f"found {reward!r}, which is no name for a folder; give another one to register_reward"
        require("/" not in reward and not reward.startswith("."), f"{own}.reward", problem)
        if reward not in known:
            more = "(or name your module in data.transform_modules)"
            raise ConfigError(f"{own}.reward", f"no reward named {reward!r}. {did_you_mean(reward, known)} {more}")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        require(is_number and abs(weight) < float("inf"), f"{own}.weight", f"found {weight!r}, expected a number")
        signature = known[reward].function.args
        offered = [parameter.arg for parameter in signature.kwonlyargs]
        limit = entry.get("limit_seconds", _usual_limit(known[reward], offered))
        is_limit = limit is None or (
            isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit <= 1e6
        )
        require(
            is_limit,
            f"{own}.limit_seconds",
            f"found {limit!r}, expected seconds above 0, up to 1000000, or null for no limit",
        )
        arguments = {name: value for name, value in entry.items() if name not in _OF_ENTRY}
        for name in arguments:
            if name not in offered:
                raise ConfigError(f"{own}.{name}", f"unknown argument of {reward}. {did_you_mean(name, offered)}")
        defaults = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
        missing = [
            parameter.arg for parameter, default in defaults if default is None and parameter.arg not in arguments
        ]
        require(not missing, own, f"{reward} needs {', '.join(missing)}")
        name, number, taken = reward, 1, {one.name for one in found}
        while name in taken:
            number += 1
            name = f"{reward}-{number}"
        found.append(Reward(name, float(weight), known[reward], arguments, limit))
    return found


def _usual_limit(source: TransformSource, offered: list[str]) -> float | None:
    """None for one that loads a model, or limits its requests itself."""
    limits_itself = source.options.get("place") == "gpu" or "request_seconds" in offered
    return None if limits_itself else LIMIT_SECONDS
