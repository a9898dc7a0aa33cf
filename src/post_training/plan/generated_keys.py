"""Keys of datasets that a model writes: checks, and which of them decide a stage."""

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from post_training.config.schema.data import DatasetConfig
from post_training.config.schema.on_policy import GenerateConfig, SelectConfig
from post_training.core.errors import ConfigError, at_least, one_of, require

# Keys of a dataset that say where rows come from, and have no meaning for rows that a model writes.
_OF_FILES = ("path", "subset", "split", "revision", "eval_split", "transform")
# Keys of `select` by the shape of the rows.
_SELECT = {
    "preference": ("pairs", "min_margin", "margin", "cut", "seed"),
    "messages": ("best", "threshold", "cut"),
    "unpaired": ("threshold", "cut"),
}


def is_generated(entry: Mapping[str, Any]) -> bool:
    """Whether a dataset of the configuration is written by a model."""
    return entry["generate"] is not None or entry["prompts"] is not None


def sampling_of(section: dict[str, Any] | None, key: str) -> dict[str, Any]:
    """How an evaluation samples, without its length; greedy where nothing is said. Raises ConfigError for keys of other datasets."""
    if section is None:
        return {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0}
    defaults = {one.name: one.default for one in fields(GenerateConfig)}
    for name, value in section.items():
        fits = name in ("temperature", "top_p", "top_k", "seed") or value == defaults[name]
        require(fits, f"{key}.{name}", "is not of an evaluation, which samples one answer of each model to a prompt")
    check_sampling({**section, "n": 1}, key)
    return sampling_keys(section)


def sampling_keys(section: dict[str, Any]) -> dict[str, Any]:
    """The keys that decide which tokens are drawn."""
    if not section["temperature"]:
        return {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0}  # the others decide nothing
    return {part: section[part] for part in ("temperature", "top_p", "top_k", "seed")}


def check_entry(entry: dict[str, Any], key: str) -> None:
    """Raise ConfigError for a part that is missing, or a key of rows in files."""
    for own in ("prompts", "generate"):
        problem = "is missing; a dataset that a model writes needs prompts and generate"
        require(entry[own] is not None, f"{key}.{own}", problem)
    require(bool(entry["name"]), f"{key}.name", "is missing; give the dataset a name")
    defaults = {one.name: one.default for one in fields(DatasetConfig)}
    for other in _OF_FILES:
        problem = "is of rows in files; of what a model writes give prompts"
        require(entry[other] == defaults[other], f"{key}.{other}", problem)


def check_sampling(section: dict[str, Any], key: str) -> None:
    """Raise ConfigError for values that cannot work."""
    for name, holds, expected in (
        ("n", 1 <= section["n"] <= 10_000, "1 to 10000"),
        (
            "temperature",
            section["temperature"] == 0 or 0.001 <= section["temperature"] <= 1000,
            "0 (greedy) or 0.001 to 1000",
        ),
        ("top_p", 0 < section["top_p"] <= 1, "a probability above 0, up to 1"),
        ("top_k", section["top_k"] >= 0, "0 (all) or more"),
        ("max_new_tokens", section["max_new_tokens"] >= 1, "1 or more"),
        ("shards", 1 <= section["shards"] <= 10_000, "1 to 10000"),
        ("batch_size", section["batch_size"] >= 1, "1 or more"),
    ):
        require(holds, f"{key}.{name}", f"found {section[name]}, expected {expected}")
    repeated = section["n"] > 1 and section["temperature"] == 0
    problem = f"found 0, which gives the same answer {section['n']} times; set n=1 or sample"
    require(not repeated, f"{key}.temperature", problem)


def server_keys(section: dict[str, Any] | None, key: str, usual: str) -> dict[str, Any] | None:
    """The checked section; None for the engine in the job itself. Raises ConfigError.

    `usual`: `slurm.generate.server_command`, for a section with neither command nor url.
    """
    if section is None:
        return None
    both = section["command"] is not None and section["url"] is not None
    require(not both, f"{key}.command", "found command and url; give one of command and url")
    if section["url"] is None:
        where = f"{key}.command"
        if section["command"] is None:
            where, section = "slurm.generate.server_command", {**section, "command": usual}
        try:
            words = shlex.split(section["command"])
        except ValueError as error:
            raise ConfigError(where, f"found {section['command']!r}: {error}") from None
        for place in ("{model}", "{port}"):
            found = any(place in word for word in words)
            require(found, where, f"found {section['command']!r}, expected {place} in it")
    else:
        problem = f"found {section['url']!r}, expected http(s)://"
        require(section["url"].startswith(("http://", "https://")), f"{key}.url", problem)
    for name, least in (("concurrency", 1), ("startup_seconds", 1), ("request_seconds", 1), ("max_retries", 0)):
        at_least(least, section[name], f"{key}.{name}")
    most = section["concurrency"] <= 4096
    require(most, f"{key}.concurrency", f"found {section['concurrency']}, expected at most 4096: each has a thread")
    return section


def select_keys(given: dict[str, Any] | None, shape: str, key: str) -> dict[str, Any]:
    """The keys that decide for this shape."""
    defaults: dict[str, Any] = {one.name: one.default for one in fields(SelectConfig)}
    section, used = given or defaults, _SELECT[shape]
    for name, value in section.items():
        fits = name in used or value == defaults[name]
        require(fits, f"{key}.{name}", f"is not of this method, whose rows are {shape}; its keys are {', '.join(used)}")
    one_of(section["pairs"], ("best_worst", "best_random", "all_ordered"), f"{key}.pairs")
    one_of(section["cut"], ("drop", "keep"), f"{key}.cut")
    at_least(0, section["min_margin"], f"{key}.min_margin")
    at_least(1, section["best"], f"{key}.best")
    needs = shape != "unpaired" or section["threshold"] is not None
    require(needs, f"{key}.threshold", "is missing; from which score on is an answer desirable?")
    own = {name: section[name] for name in used}
    if shape == "messages" and own["best"] is None and own["threshold"] is None:
        own["best"] = 1
    if shape == "preference" and own["pairs"] != "best_random":
        del own["seed"]
    if not section["margin"]:
        own.pop("margin", None)  # as before there was one
    return own
