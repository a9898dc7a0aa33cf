"""Rows as transforms see them: columns by name or by a path into nested values, and a note of what was read of them.

A path is `examples[0][source]` or `examples.0.source`; a column of exactly that name goes before it. An object of lists, as which
`datasets` stores a list of objects, is read as that list where it has a key that names a part of a turn or that an argument names.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from post_training.core.errors import DataError, did_you_mean

_STEP = re.compile(r"([^.\[\]]+)|\[([^\[\]]+)\]|\.")
_PLACE = re.compile(r"\{([^{}]+)\}")
_MISSING: Any = object()
_OF_TURNS = frozenset(("role", "content", "from", "value"))


@dataclass
class Read:
    """What was read of some rows."""

    rows: int = 0
    has: Counter[str] = field(default_factory=Counter)
    """Columns that the configuration may name -> rows that have them."""
    asked: set[str] = field(default_factory=set)
    """Columns and paths that the transform asked for."""
    columns: Counter[str] = field(default_factory=Counter)
    """All columns -> rows that have them."""

    def add(self, other: "Read") -> None:
        """Add what was read of other rows."""
        self.rows += other.rows
        self.has.update(other.has)
        self.asked |= other.asked
        self.columns.update(other.columns)

    def check(self, arguments: dict[str, Any], where: str) -> None:
        """Raise DataError for a column that an argument names and no row has."""
        for argument, value in arguments.items():
            for name in names_in(value):
                if self.rows and name in self.asked and not self.has[name]:
                    raise DataError(
                        f"{where}: no row has a column {name!r}, which the transform's argument {argument} names. "
                        f"{did_you_mean(name, self.columns)}"
                    )

    def summary(self) -> dict[str, Any]:
        """For the manifest: `used` and `unused` columns; `partly`, rows that have a named column that others lack."""
        used = {top_level(name, self.columns) for name in self.asked}
        return {
            "used": sorted(used & set(self.columns)),
            "unused": sorted(set(self.columns) - used),
            "partly": {name: count for name, count in sorted(self.has.items()) if 0 < count < self.rows},
        }


class Columns:
    """Makes rows for one transform, and notes what it reads."""

    def __init__(self, arguments: dict[str, Any], keys: Iterable[str] = ()) -> None:
        """`arguments` are those that the configuration gives; an object of lists with one of `keys` is read as a list of objects."""
        self._named = sorted({name for value in arguments.values() for name in names_in(value)})
        self._keys = frozenset(keys)
        self._paths = [name for name in self._named if "." in name or "[" in name]
        self._layouts: Counter[tuple[str, ...]] = Counter()
        self._read = Read()

    def row(self, value: dict[str, Any]) -> "Row":
        """A row for the transform."""
        row = self.again(value)
        self._layouts[tuple(value)] += 1
        for name in self._paths:  # of plain names the layout tells
            if at_path(value, name) is not _MISSING and name not in value:
                self._read.has[name] += 1
        return row

    def again(self, value: dict[str, Any]) -> "Row":
        """The same for a row that has been counted."""
        row = Row(value)
        row.asked, row.keys_of_objects = self._read.asked, self._keys
        return row

    def take(self) -> Read:
        """What was read since the last call."""
        taken, self._read = self._read, Read()
        for layout, rows in self._layouts.items():
            taken.rows += rows
            taken.columns.update(dict.fromkeys(layout, rows))
            taken.has.update(dict.fromkeys(set(layout).intersection(self._named), rows))
        self._layouts.clear()
        return taken


class Row(dict[str, Any]):
    """A row that knows paths."""

    asked: set[str]
    keys_of_objects: frozenset[str] = _OF_TURNS
    """An object of lists with one of these keys is read as a list of objects."""

    def __missing__(self, key: str) -> Any:
        found = at_path(self, key)
        if found is _MISSING:
            raise KeyError(key)
        return found

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        found = dict.__getitem__(self, key)
        return self._read(found) if type(found) is dict else found

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        self.asked.add(key)
        found = dict.__getitem__(self, key) if dict.__contains__(self, key) else at_path(self, key)
        if type(found) is dict:
            return self._read(found)
        return default if found is _MISSING else found

    def _read(self, value: dict[str, Any]) -> Any:
        return value if self.keys_of_objects.isdisjoint(value) else as_objects(value)

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, key) or at_path(self, key) is not _MISSING

    def __iter__(self) -> Iterator[str]:
        self.asked.update(dict.keys(self))
        return dict.__iter__(self)

    def keys(self) -> Any:
        """As of a dict; whoever lists the columns may use any."""
        self.asked.update(dict.keys(self))
        return dict.keys(self)

    def values(self) -> Any:
        """As of a dict."""
        self.asked.update(dict.keys(self))
        return dict.values(self)

    def items(self) -> Any:
        """As of a dict."""
        self.asked.update(dict.keys(self))
        return dict.items(self)


def at_path(value: Any, path: Any) -> Any:
    """The value below a path; a marker that is no value where there is none."""
    if type(path) is not str or ("." not in path and "[" not in path):
        return _MISSING
    for step in (word or index for word, index in _STEP.findall(path) if word or index):
        if isinstance(value, dict) and dict.__contains__(value, step):
            value = dict.__getitem__(value, step)
        elif isinstance(value, list) and step.lstrip("-").isdecimal() and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            return _MISSING
    return value


def as_objects(value: Any) -> Any:
    """An object of lists of one length as a list of objects, without nulls; anything else as it is."""
    lists = {key: part for key, part in value.items() if part is not None} if isinstance(value, dict) else {}
    if (
        not lists
        or not all(isinstance(part, list) for part in lists.values())
        or len(set(map(len, lists.values()))) > 1
    ):
        return value
    rows = (dict(zip(lists, parts, strict=True)) for parts in zip(*lists.values(), strict=True))
    return [{key: part for key, part in row.items() if part is not None} for row in rows]


def keys_of_objects(arguments: dict[str, Any]) -> set[str]:
    """Keys that an object of lists may have to be read as a list of objects, by all arguments of a transform."""
    return {*_OF_TURNS, *(name for value in arguments.values() for name in names_in(value))}


def names_in(value: Any) -> list[str]:
    """The columns that a value of an argument may name: itself, the members of a list, those in braces of a template."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return [name for text in texts for name in (_PLACE.findall(text) or [text])]


def top_level(path: str, columns: Any) -> str:
    """The column that a path leads through."""
    return path if path in columns else re.split(r"[.\[]", path, maxsplit=1)[0]
