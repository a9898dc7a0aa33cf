"""Transforms: a source's row -> conversations, preferences or unpaired completions.

A transform is a top-level function below `@register_transform("name")`, with the signature
`fn(row: dict, **arguments) -> dict`, or a list of dicts where one row gives several examples. It returns
`{"messages": [...]}`, `{"prompt": [...], "chosen": [...], "rejected": [...]}` or `{"prompt", "completion", "label"}`,
each with `tools` where there are any. A row that cannot be used raises KeyError (no such column), TypeError
or ValueError("reason: detail"), and is rejected with that reason. `Skip("reason: detail")` means that a valid row gives no
example, such as a tie: it is counted too, but not against `data.max_reject_fraction`.

Where one example takes several rows (`@register_transform("name", group=keys)`), `keys(row, **arguments)` gives the
keys of a row, rows that share one are a group, and the function is called with a group's rows, in file order. It
yields `(indices of the rows used, example)`, or ValueError or Skip in the example's place.

`row` knows paths: `row["examples[0][source]"]`, and `row.get` and `in` likewise.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from post_training.core.errors import DataError, located

Row = dict[str, Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])
_registered: dict[str, tuple[Callable[..., Any], Callable[..., Iterable[Any]] | None]] = {}


class Skip(ValueError):
    """A valid row that gives no example, by the transform's choice."""


@dataclass(frozen=True)
class Transform:
    """A transform with its arguments."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    """All of them, defaults included."""
    keys: Callable[..., Iterable[Any]] | None = None

    def __call__(self, row: Any) -> Any:
        """Apply it to a row, or to a group of rows."""
        return self.function(row, **self.arguments)

    def group_keys(self, row: Row) -> list[Any]:
        """Keys that a row shares with others of its group."""
        assert self.keys is not None
        return [key for key in self.keys(row, **self.arguments) if key is not None]


def register_transform(
    name: str,
    group: Callable[..., Iterable[Any]] | None = None,
    gives: str | tuple[str, ...] | None = None,
    choices: dict[str, tuple[Any, ...]] | None = None,
) -> Callable[[_Function], _Function]:
    """Give a function a name by which `transform:` finds it.

    The planner finds it without importing it, so the decorator stands literally above a top-level `def`. `gives` names the
    shape of the rows that it makes, or several (`messages`, `preference`, `unpaired`): a stage that takes another one refuses
    it while planning; so it does another value than one of `choices` (argument -> its values).
    """

    def register(function: _Function) -> _Function:
        before = _registered.get(name, (function, None))[0]
        places = [f"{f.__code__.co_filename}:{f.__code__.co_firstlineno}" for f in (function, before)]  # type: ignore[attr-defined]
        if len(set(places)) > 1:
            raise DataError(f"transform {name!r} is registered twice: at {places[1]} and {places[0]}; rename one")
        _registered[name] = (function, group)
        return function

    return register


def import_source(file: Path, kind: str) -> None:
    """Import a file by its path, so that it registers what it defines. Raises DataError when that fails."""
    module_name = f"_post_training_{kind}_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file}: cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look for their module there
    # A module may import its neighbours, as it would when run from its own folder.
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except DataError:
        raise
    except (Exception, SystemExit) as error:  # the user's code can fail in any way
        raise DataError(f"{file}: importing it failed: {located(error, module.__file__ or '')}") from None
    finally:
        sys.path.pop(0)


def load_transform(name: str, file: Path, arguments: dict[str, Any]) -> Transform:
    """The transform of that name from its source file, ready to be called with a row alone.

    Raises DataError when the file cannot be imported or does not take the arguments.
    """
    _registered.clear()  # of another file, or of this one as it was before an edit
    import_source(file, "transform")
    function, keys = _registered.get(name, (None, None))
    if function is None:
        raise DataError(f"{file}: does not register a transform named {name!r}")
    try:
        bound = inspect.signature(function).bind({}, **arguments)
    except TypeError as error:
        taken = ", ".join(list(inspect.signature(function).parameters)[1:]) or "none"
        raise DataError(f"transform {name!r}: {error}; its arguments are: {taken}") from None
    bound.apply_defaults()
    given = dict(list(bound.arguments.items())[1:])
    # `**kwargs` of the function come as one entry.
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name)
    return Transform(function, given, keys)
