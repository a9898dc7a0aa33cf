"""Row shapes, from validated row to training row: the folder is the registry.

A shape is one module here, with everything that stages need to know of it:

- `KEY`: the column that rows of no other shape have;
- `SCHEMA`: the Arrow columns of a tokenised row, each a list of int32 (one value is a list of one), as the
  trainer's view maps them into memory;
- `OPTIONAL`, where it has some: columns that a file has only where one of its rows has a value; an empty list is none;
- `validate(row, rules)`: the checked row; raises `rows.InvalidRow` with the reason;
- `conversations(row)`: the conversations to render, each with `add_generation_prompt`; the same number for every row;
- `columns(rows, encoded, train_on, dropped)`: which rows can be trained on, and the columns of those, from the
  encoded conversations of all rows; the others are counted in `dropped` by reason;
- `lengths(batch)`: tokens of each row as `max_seq_length` counts them, int64 [n];
- `token_counts(batch)`: all tokens and the trained ones of each row, two arrays of int64 [n];
- `sequences(row)`: the sequences of one training row that the model reads, as (name, token ids, trained mask).

A method names its shape in `ROWS`.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any

PROMPTS = "prompts"
"""In place of a shape: rows that a model is to answer."""
VALUES = ("label", "margin")
"""Columns with a number for a row, and not with tokens."""
_TITLES = {
    PROMPTS: "prompts",
    "messages": "conversations (messages)",
    "preference": "pairs (prompt, chosen, rejected)",
    "unpaired": "answers with a label (prompt, completion, label)",
}


def names() -> list[str]:
    """All shapes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of one shape."""
    return importlib.import_module(f"{__name__}.{name}")


def optional(shape: ModuleType) -> tuple[str, ...]:
    """Columns that not every file has."""
    found: tuple[str, ...] = getattr(shape, "OPTIONAL", ())
    return found


def columns(shape: ModuleType) -> list[str]:
    """All columns that a tokenised row may have."""
    return [*shape.SCHEMA.names, *optional(shape)]


def title(name: str) -> str:
    """What the rows of a shape are called in messages, and their columns; its module is not imported."""
    return _TITLES.get(name, f"rows of the shape {name}")


def name_of(row: dict[str, Any]) -> str | None:
    """The shape that a row has by its columns."""
    return next((name for name in names() if load(name).KEY in row), None)


def of_columns(columns: Iterable[str]) -> ModuleType:
    """The shape of tokenised rows that have these columns."""
    found = set(columns)
    return next(shape for shape in map(load, names()) if set(shape.SCHEMA.names) <= found)
