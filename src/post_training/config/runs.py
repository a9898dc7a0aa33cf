"""`runs` and `sweep` -> the runs of a configuration: name and changed keys of each."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from post_training.config.trees import Tree
from post_training.core.errors import ConfigError, did_you_mean, require, written_as_list
from post_training.core.fingerprint import is_safe_name, slug

KEYS = ("runs", "sweep", "run")
_OF_ALL_RUNS = ("run_name", "offline", "paths", "debug", "recorded_files", *KEYS)


@dataclass(frozen=True)
class Run:
    """One run: its name, and the keys in which it differs from the file."""

    name: str = ""
    """`low-beta0.1-seed1`; empty for the only run of a configuration without `runs` and `sweep`."""
    values: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value."""
    written: dict[str, str] = field(default_factory=dict)
    """Dotted key -> where the user wrote it: `sweep.dpo.beta`, `runs.low.dpo.beta`."""

    @contextmanager
    def error_context(self) -> Iterator[None]:
        """Errors about one of its keys name the key that the user wrote."""
        try:
            yield
        except ConfigError as error:
            raise self._as_written(error) if self.name else error from None

    def _as_written(self, error: ConfigError) -> ConfigError:
        for key, written in self.written.items():
            if error.key == key or error.key.startswith(f"{key}."):
                return ConfigError(written + error.key.removeprefix(key), error.problem)
            if key.startswith(f"{error.key}."):
                return ConfigError(written, error.problem)
        return ConfigError(error.key, f"{error.problem} (run {self.name})")


def expand(runs: Any, sweep: Any) -> list[Run]:
    """Every run, in the order of the file; each of `runs` at each point of `sweep`'s grid.

    Args:
        runs: name -> dotted keys or nested mapping of what it changes; None = not given.
        sweep: dotted key (or nested mapping) -> list of values; None = not given.

    Raises ConfigError for anything but that, for values that are given twice, and for names that clash.
    """
    grid = _grid(sweep)
    found: dict[str, Run] = {}
    for name, own in _named(runs).items():
        for point_name, point in grid:
            for key in (key for key in own if key in point):
                raise ConfigError(f"runs.{name}.{key}", f"is in sweep too, which gives {point[key]!r}; leave one out")
            label = "-".join(filter(None, [name, point_name]))
            require(label not in found, f"runs.{name}", f"its run {label} has the name of another one; rename it")
            written = {key: f"runs.{name}.{key}" for key in own} | {key: f"sweep.{key}" for key in point}
            found[label] = Run(label, own | point, written)
    return list(found.values())


def choose(runs: list[Run], wanted: Any) -> list[Run]:
    """The runs that `run` names, one or a list; None = all."""
    if wanted is None:
        return runs
    by_name = {run.name: run for run in runs}
    names = wanted if isinstance(wanted, list) else [wanted]
    for name in names:
        if name not in by_name or not name:
            offered = did_you_mean(str(name), by_name) if "" not in by_name else "This configuration has one run only"
            raise ConfigError("run", f"found {name!r}. {offered}")
    return [run for run in runs if run.name in names]


def _named(runs: Any) -> dict[str, Tree]:
    if runs is None or runs == {}:
        return {"": {}}
    if not isinstance(runs, dict):
        raise ConfigError("runs", f"found {runs!r}, expected a mapping of names to the keys that each run changes")
    found = {}
    for name, keys in runs.items():
        if not is_safe_name(name):
            raise ConfigError(f"runs.{name}", "the name is used in paths; use letters, digits, '.', '_' and '-' only")
        if not isinstance(keys, dict) and keys is not None:
            expected = "a mapping of keys, or {} for the file as it is"
            raise ConfigError(f"runs.{name}", f"found {keys!r}, expected {expected}")
        found[name] = dict(_flat(keys or {}))
        _check_keys(found[name], f"runs.{name}")
    return found


def _grid(sweep: Any) -> list[tuple[str, Tree]]:
    """Name and values of each point, the last key changing fastest."""
    if sweep is None or sweep == {}:
        return [("", {})]
    if not isinstance(sweep, dict):
        raise ConfigError("sweep", f"found {sweep!r}, expected a mapping of dotted keys to lists of values")
    axes = dict(_flat(sweep))
    _check_keys(axes, "sweep")
    short = _short_names(list(axes))
    points = []
    for key, values in axes.items():
        where, is_list = f"sweep.{key}", isinstance(values, list)
        require(is_list, where, f"found {values!r}, expected a list of values, such as {written_as_list(values)}")
        require(bool(values), where, "is an empty list; give values, or leave the key out")
        texts = [short[key] + _text(value, index) for index, value in enumerate(values)]
        twice = [value for index, value in enumerate(values) if texts[index] in texts[:index]]
        require(not twice, where, f"{(*twice, None)[0]!r} is there twice, or would give two runs the same name")
        points.append([(text, (key, value)) for text, value in zip(texts, values, strict=True)])
    return [
        ("-".join(text for text, _ in point), dict(pair for _, pair in point)) for point in itertools.product(*points)
    ]


def _check_keys(keys: Tree, where: str) -> None:
    for key in keys:
        if re.split(r"[.\[]", key)[0] in _OF_ALL_RUNS:
            raise ConfigError(f"{where}.{key}", "is the same for all runs of a file; give it at the top level")


def _flat(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value; an empty mapping and what an index names are values."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and "[" not in key:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _short_names(keys: list[str]) -> dict[str, str]:
    """The fewest last parts of each key that distinguish it from the others: `beta`, `dpo.seed` beside `sft.seed`."""
    parts = {key: re.sub(r"\[(\d+)\]", r"\1", key).split(".") for key in keys}
    found = {}
    for key in keys:
        others = [parts[other] for other in keys if other != key]
        size = next(
            n for n in itertools.count(1) if n >= len(parts[key]) or all(o[-n:] != parts[key][-n:] for o in others)
        )
        found[key] = ".".join(parts[key][-size:])
    return found


def _text(value: Any, index: int) -> str:
    """A value in a run's name: `0.1`, `5e-7`, `-true`, `-org--model`; a container's number in the list."""
    if isinstance(value, list | dict):
        return f"-{index + 1}"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    with_point = re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE)
    if with_point is None:
        return f"-{slug(text)}"
    number = repr(float(text)) if re.search(r"[.e]", text, re.IGNORECASE) else text
    return re.sub(r"e([+-])0*(\d)", lambda found: f"e{found[1].strip('+')}{found[2]}", number)
