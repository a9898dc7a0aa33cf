"""Nulls that a union of columns has put into the arguments of tool calls and into the schemas of tools.

A table gives every object the keys of all objects: a call of `weather(city)` beside one of `sum(a, b)` comes back with a null
`a` and `b`, and would teach the model to write them. A null in a schema is such a key. A null argument is one where the
tools declare the function without it; and, where they do not declare it, where no call of the function in the
dataset gives it a value while a call of another function does. The latter is known when all rows have been read.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from post_training.core.fingerprint import replacing
from post_training.data.rows import TURN_COLUMNS

# Keys of JSON Schema that may say null.
_MAY_BE_NULL = ("default", "const", "example")


@dataclass
class Nulls:
    """What was dropped, and what is not decided yet."""

    rows: int = 0
    """Rows from which a null was dropped."""
    values: dict[str, set[str]] = field(default_factory=dict)
    """Function -> its arguments that have a value in some call."""
    open: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(function, argument) -> calls in which it is null, declared by no tool of the row."""

    def add(self, other: "Nulls") -> None:
        """Add what was found in other rows."""
        self.rows += other.rows
        for function, names in other.values.items():
            self.values.setdefault(function, set()).update(names)
        self.open.update(other.open)

    def note(self, example: dict[str, Any]) -> None:
        """Note which arguments have values."""
        for call in _calls(example):
            given = {key for key, value in call["arguments"].items() if value is not None}
            self.values.setdefault(call["name"], set()).update(given)

    def clean(self, example: dict[str, Any]) -> None:
        """Drop the nulls of a checked example that its own tools decide, and note the others."""
        self.note(example)
        dropped = False
        if "tools" in example:
            tools = [_without_nulls(tool) for tool in example["tools"]]
            dropped, example["tools"] = tools != example["tools"], tools
        declared = {name: known for name, known in map(_declared, example.get("tools", ())) if known is not None}
        for call in _calls(example):
            name, arguments = call["name"], call["arguments"]
            for key in [key for key, value in arguments.items() if value is None]:
                if name not in declared:
                    self.open[name, key] += 1
                elif key not in declared[name]:
                    del arguments[key]
                    dropped = True
        self.rows += dropped

    def settle(self, path: Path) -> bool:
        """Drop from finished `rows.jsonl` what all rows together decide; whether there was anything."""
        filled = {
            (function, key)
            for function, key in self.open
            if key not in self.values.get(function, ())
            and any(key in names for other, names in self.values.items() if other != function)
        }
        if not filled:
            return False
        with path.open("rb") as lines, replacing(path) as file:
            for line in lines:
                file.write(self._without(line, filled) if b"null" in line and b'"tool_calls"' in line else line)
        return True

    def _without(self, line: bytes, filled: set[tuple[str, str]]) -> bytes:
        example = orjson.loads(line)
        dropped = False
        for call in _calls(example):
            for key in [k for k, v in call["arguments"].items() if v is None and (call["name"], k) in filled]:
                del call["arguments"][key]
                dropped = True
        self.rows += dropped
        return orjson.dumps(example) + b"\n" if dropped else line


def _calls(example: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for turn in (turn for key in TURN_COLUMNS for turn in example.get(key, ())):
        yield from (call["function"] for call in turn.get("tool_calls", ()))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if item is not None or key in _MAY_BE_NULL}
        return {
            key: item if key in (*_MAY_BE_NULL, "enum", "examples") else _without_nulls(item)
            for key, item in kept.items()
        }
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _declared(tool: Any) -> tuple[str, set[str] | None]:
    """A tool's name and its arguments; None where it says nothing of them, or takes any."""
    function = tool.get("function") if isinstance(tool, dict) else None
    function = function if isinstance(function, dict) else {}
    schema = function.get("parameters")
    schema = schema if isinstance(schema, dict) else {}
    known = schema.get("properties")
    if not isinstance(known, dict) or schema.get("additionalProperties"):
        return str(function.get("name")), None
    return str(function.get("name")), set(known)
