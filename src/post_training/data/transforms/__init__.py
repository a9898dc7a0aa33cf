"""Transforms: a source's row -> a conversation, a preference or a judged answer, or a list of them.

A transform is a top-level function below `@register_transform("name")`, with the signature
`fn(row: dict, **arguments) -> dict`. It returns `{"messages": [...]}`,
`{"prompt": [...], "chosen": [...], "rejected": [...]}`, `{"prompt": [...], "completion": [...], "label": bool}` or
a list of such, and says that a row cannot be used by raising
KeyError (no such column), TypeError or ValueError; the row is then rejected with that reason.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from post_training.errors import DataError

Row = dict[str, Any]
Transform = Callable[..., Row | list[Row]]
_Function = TypeVar("_Function", bound=Transform)
_registered: dict[str, Transform] = {}


def register_transform(name: str) -> Callable[[_Function], _Function]:
    """Give a function a name by which `transform:` finds it.

    The planner finds it without importing it, so the decorator stands literally above a top-level `def`.
    """

    def register(function: _Function) -> _Function:
        places = [
            f"{f.__code__.co_filename}:{f.__code__.co_firstlineno}" for f in (function, _registered.get(name, function))
        ]
        if len(set(places)) > 1:
            raise DataError(f"transform {name!r} is registered twice: at {places[1]} and {places[0]}; rename one")
        _registered[name] = function
        return function

    return register


def load_transform(name: str, file: Path, arguments: dict[str, Any]) -> Transform:
    """The transform of that name from its source file, ready to be called with a row alone.

    Raises DataError when the file cannot be imported or does not take the arguments.
    """
    module_name = f"_post_training_transform_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file}: cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    _registered.clear()  # of another file, or of this one as it was before an edit
    sys.modules[module_name] = module  # dataclasses and pickle look for their module there
    # A module may import its neighbours, as it would when run from its own folder.
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except DataError:
        raise
    except Exception as error:  # the user's code can fail in any way
        raise DataError(f"{file}: importing it failed: {type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)
    function = _registered.get(name)
    if function is None:
        raise DataError(f"{file}: does not register a transform named {name!r}")
    try:
        inspect.signature(function).bind({}, **arguments)
    except TypeError as error:
        taken = ", ".join(list(inspect.signature(function).parameters)[1:]) or "none"
        raise DataError(f"transform {name!r}: {error}; its arguments are: {taken}") from None
    return lambda row: function(row, **arguments)
