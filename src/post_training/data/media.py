"""Rows whose text refers to pictures, sound or video: they are refused, because only text is trained on."""

import re
from collections.abc import Iterable
from typing import Any

from post_training.data.rows import TURN_COLUMNS, InvalidRow

_COLUMN = re.compile(r"(image|img|picture|video|audio)s?(_?(path|file|url|data|byte)s?)?", re.IGNORECASE)
# As datasets write the place of a picture into the text.
_PLACE = re.compile(
    r"<\|?/?(image|img|video|audio|picture)(_?(pad|token|start|end|\d+))?\|?>|\[(IMG|IMAGE)\]", re.IGNORECASE
)


def media_columns(names: Iterable[str]) -> list[str]:
    """The columns that hold something else than text, by their names."""
    return [name for name in names if _COLUMN.fullmatch(name)]


def refuse_media(row: dict[str, Any], columns: list[str], example: dict[str, Any]) -> None:
    """Raise InvalidRow for an example whose text has a place for what one of these columns of its source row holds."""
    for column in (column for column in columns if row[column]):
        for turn in (turn for key in TURN_COLUMNS for turn in example.get(key, ())):
            if (place := _PLACE.search(turn["content"])) is not None:
                kind = (place[1] or "image").lower()
                problem = f"the text has {place[0]} for what is in the column {column!r}; {kind}s are not supported"
                raise InvalidRow("unsupported_content", problem)
