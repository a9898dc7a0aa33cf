"""Rows whose text refers to pictures, sound or video: they are refused, because only text is trained on."""

import re
from functools import lru_cache
from typing import Any

from post_training.data.rows import TURN_COLUMNS, InvalidRow

_COLUMN = re.compile(r"(image|img|picture|video|audio)s?(_?(path|file|url|data|byte)s?)?", re.IGNORECASE)
# As datasets write the place of a picture into the text.
_PLACE = re.compile(
    r"<\|?/?(image|img|video|audio|picture)(_?(pad|token|start|end|\d+))?\|?>|\[(IMG|IMAGE)\]", re.IGNORECASE
)


def refuse_media(row: Any, example: dict[str, Any]) -> None:
    """Raise InvalidRow for an example whose text has a place for what a column of its source row holds."""
    for column in _columns(tuple(row)) if isinstance(row, dict) else ():
        if row[column]:
            for turn in (turn for key in TURN_COLUMNS for turn in example.get(key, ())):
                if (place := _PLACE.search(turn["content"])) is not None:
                    kind = place[1] or "image"
                    problem = f"the text has {place[0]} for what is in the column {column!r}; {kind.lower()}s are not supported"
                    raise InvalidRow("unsupported_content", problem)


@lru_cache
def _columns(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if _COLUMN.fullmatch(name)]
