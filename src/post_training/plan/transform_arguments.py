"""A transform's arguments and what it makes, checked against its definition while planning: nothing is imported."""

import ast
from typing import Any

from post_training.core.errors import ConfigError, did_you_mean, require
from post_training.data import shapes
from post_training.data.registry import TransformSource
from post_training.data.shapes import PROMPTS

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "list": (list,), "dict": (dict,),
    "tuple": (list,), "Any": (object,),
}  # fmt: skip


def check_call(source: TransformSource, arguments: dict[str, Any], rows: str, key: str) -> None:
    """Raise ConfigError for an argument that the function does not take, a value of another type, or a shape that does not fit.

    Args:
        source: where the transform is defined.
        arguments: as configured.
        rows: shape that the stage takes, or `any`.
        key: the configuration key that errors name.
    """
    taken, choices = source.function.args, source.choices
    parameters = {one.arg: one.annotation for one in (*taken.args[1:], *taken.kwonlyargs)}
    for name, value in arguments.items():
        if name in parameters:
            expected = parameters[name]
            problem = f"found {value!r}, expected {ast.unparse(expected) if expected else 'anything'}".replace(
                "None", "null"
            )
            require(_fits(value, expected), f"{key}.{name}", problem)
            allowed = choices.get(name, (value,))
            listed = ", ".join("null" if choice is None else str(choice) for choice in allowed)
            require(value in allowed, f"{key}.{name}", f"found {value!r}, expected one of {listed}")
        elif taken.kwarg is None:
            what = did_you_mean(name, parameters) if parameters else "it takes none"
            raise ConfigError(f"{key}.{name}", f"the transform {source.name!r} has no such argument. {what}")
    required = [one.arg for one in taken.args[1 : len(taken.args) - len(taken.defaults)]]
    required += [one.arg for one, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True) if default is None]
    missing = [name for name in required if name not in arguments]
    problem = f"the transform {source.name!r} needs {', '.join(missing)}; write {{name: {source.name}, {missing[0] if missing else ''}: ...}}"
    require(not missing, key, problem)
    gives = source.gives
    shapes_known = [*shapes.names(), PROMPTS]
    unknown = [shape for shape in gives if shape not in shapes_known]
    problem = f"{source.file}: {source.name!r} gives {unknown}. {did_you_mean(str(unknown[:1]), shapes_known)}"
    require(not unknown, key, problem)
    if gives and rows not in (*gives, "any", PROMPTS):
        made = " or ".join(shapes.title(shape) for shape in gives)
        problem = f"this stage takes {shapes.title(rows)}, but the transform {source.name!r} gives {made}"
        raise ConfigError(key, f"{problem}; name data that fit, or a transform that makes them")


def _fits(value: Any, annotation: ast.expr | None) -> bool:
    """Whether a value of the configuration can be of an annotated type; of one that is not known here it can."""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=elements)):
            return value in [ast.literal_eval(element) for element in elements]
        case ast.Subscript(value=ast.Name(id="list"), slice=element):
            return isinstance(value, list) and all(_fits(item, element) for item in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, element])):
            return isinstance(value, dict) and all(_fits(item, element) for item in value.values())
        case ast.Subscript(value=name):
            return _fits(value, name)
        case ast.Name(id=name) if name in _TYPES:
            return isinstance(value, _TYPES[name]) and (name in ("bool", "Any") or not isinstance(value, bool))
    return True
