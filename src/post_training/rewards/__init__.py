"""Rewards: answers -> scores. The folder is the registry: one file each, found by its being there.

A reward is a top-level function below `@register_reward("name")`, called as TRL calls its reward functions:
`fn(prompts, completions, **columns) -> list[float | None]`, or without the prompts `fn(completions, **columns)`, where

- `prompts` are lists of messages, and `completions` lists of one message, the assistant's, of as many answers;
- each column that all their prompts have is passed as a keyword, a list with a value for each answer, as far as the function
  takes it;
- keyword-only parameters are the arguments that the configuration gives, `{reward: NAME, argument: value}`, and never columns.

None is no score: the answer is left out and counted. A function on the CPU runs in a process of its own, which is ended where an
answer takes longer than `limit_seconds` of its entry. `place="gpu"` in the decorator makes it a job with a GPU; a keyword-only
parameter `model` is the folder of a model, which the configuration names as `generate.model` is named.
"""

import inspect
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from post_training.core.errors import DataError, did_you_mean
from post_training.data.transforms import import_source

Messages = list[dict[str, Any]]
_Function = TypeVar("_Function", bound=Callable[..., Any])
_registered: dict[str, Callable[..., Any]] = {}


def register_reward(name: str, place: str = "cpu") -> Callable[[_Function], _Function]:
    """Give a function a name by which `reward:` finds it; it stands literally above a top-level `def`, which is found unimported."""

    def register(function: _Function) -> _Function:
        _registered[name] = function
        return function

    return register


def answer_texts(completions: list[Messages]) -> list[str]:
    """The text of each answer."""
    return [str(completion[-1]["content"]) for completion in completions]


def column(columns: dict[str, list[Any]], name: str) -> list[Any]:
    """A column of the prompts. Raises DataError where they have none of that name."""
    if name not in columns:
        raise DataError(f"the prompts have no column {name!r}. {did_you_mean(name, columns)}")
    return columns[name]


@dataclass(frozen=True)
class Reward:
    """A reward with its arguments."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]

    def __call__(self, prompts: list[Messages], answers: list[str], columns: list[dict[str, Any]]) -> list[Any]:
        """A number or None for each answer. Raises whatever the function raises, and DataError for anything but a list (tuple, array) of that length."""
        completions = [[{"role": "assistant", "content": answer}] for answer in answers]
        parameters = inspect.signature(self.function).parameters
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        # A keyword-only parameter is an argument of the configuration's, whatever columns the prompts have.
        own = {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY} | {"prompts", "completions"}
        shared = [name for name in (columns[0] if columns else {}) if all(name in one for one in columns)]
        taken = [name for name in shared if name not in own and (takes_any or name in parameters)]
        # Copies: what a function does to them must not reach the next answer.
        given = {name: [deepcopy(one[name]) for one in columns] for name in taken}
        given |= deepcopy(self.arguments)
        asked = [deepcopy(one) for one in prompts]
        if next(iter(parameters), "") == "completions":  # as TRL allows, which passes both by name
            given |= {"prompts": asked} if takes_any or "prompts" in parameters else {}
            found = self.function(completions, **given)
        else:
            found = self.function(asked, completions, **given)
        if hasattr(found, "tolist") or isinstance(found, tuple):
            found = found.tolist() if hasattr(found, "tolist") else list(found)
        if not isinstance(found, list) or len(found) != len(answers):
            size = f"{len(found)} values" if isinstance(found, list) else type(found).__name__
            raise DataError(f"returned {size}, expected a list of {len(answers)} scores")
        return found


def load_reward(name: str, file: Path, arguments: dict[str, Any]) -> Reward:
    """The reward of that name from its source file. Raises DataError when the file cannot be imported or does not register it."""
    _registered.clear()
    import_source(file, "reward")
    function = _registered.get(name)
    if function is None:
        raise DataError(f"{file}: does not register a reward named {name!r}")
    return Reward(name, function, arguments)
