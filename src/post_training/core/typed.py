"""Whether JSON that was read has the types that a TypedDict promises."""

from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

_hints = cache(get_type_hints)


def problem(value: Any, expected: Any, where: str = "") -> str | None:
    """`rows_out: found 'many', expected int`, or None. Keys that the type does not name are not checked; null fits any."""
    if expected is Any or (value is None and where):
        return None
    if is_typeddict(expected):
        if not isinstance(value, dict):
            return _wrong(value, "an object", where)
        hints = _hints(expected)
        return _first(
            problem(value[key], hints[key], f"{where}.{key}" if where else key) for key in hints.keys() & value
        )
    kind, of = get_origin(expected), get_args(expected)
    if kind in (Union, UnionType):
        wrong = [problem(value, one, where) for one in of]
        return None if None in wrong else wrong[0]
    if kind is list:
        if not isinstance(value, list):
            return _wrong(value, "a list", where)
        return _first(problem(one, of[0], f"{where}[{number}]") for number, one in enumerate(value))
    if kind is dict:
        if not isinstance(value, dict):
            return _wrong(value, "an object", where)
        return _first(problem(one, of[1], f"{where}.{key}") for key, one in value.items())
    fits = isinstance(value, int | float if expected is float else expected) and (expected is bool or value is not True)
    return None if fits else _wrong(value, expected.__name__, where)


def _first(problems: Any) -> str | None:
    return next((found for found in problems if found), None)


def _wrong(value: Any, expected: str, where: str) -> str:
    return f"{where + ': ' if where else ''}found {str(value)[:60]!r}, expected {expected}"
