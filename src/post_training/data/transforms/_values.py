"""Values in their many spellings: numbers and flags as CSV has them, values at a path, lists that are written as text."""

import re
from typing import Any

from post_training.data.columns import Row
from post_training.data.transforms._parts import messages, read_json

# How a list of turns begins that is written as text: as JSON, or as Python writes it, which is refused.
_TURNS = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")
_NOTHING: Any = object()


def spoken(value: Any, speaker: str) -> list[Any]:
    """As `messages`, also of a list of turns that is written as JSON text."""
    if isinstance(value, str) and _TURNS.match(value):
        value = read_json(value, f"text of the {speaker} that begins like a list of messages")
    return messages(value, speaker)


def below(value: dict[str, Any], path: str, default: Any = _NOTHING) -> Any:
    """What an object holds at a key or a path. Raises KeyError where there is nothing and no `default`."""
    row = Row(value)
    row.asked = set()
    found = row.get(path, default)
    if found is _NOTHING:
        raise KeyError(path)
    return found


def number(value: Any, name: str) -> float | None:
    """A number, or its text as CSV has it; None for null, an empty cell and NaN."""
    if value is None or value == "" or value != value:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"wrong_type: {name} is {value!r:.80}, expected a number") from None


def flag(value: Any, name: str) -> bool | None:
    """True or false, 1 or 0, or their text as CSV has it; None for null and an empty cell."""
    if value is None or value == "":
        return None
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if isinstance(value, list | dict) or str(value).lower() not in known:
        raise TypeError(f"{name} is {value!r:.40}, expected true, false, 1 or 0")
    return known[str(value).lower()]
