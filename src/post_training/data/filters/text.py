"""Text of a row for the filters: turns, words, shingles."""

import re
from collections.abc import Iterator
from typing import Any

import orjson

SHINGLE_WORDS = 5
"""Words of a shingle; near-duplicates share most of theirs."""
# Scripts without spaces: each character is a word.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")
_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")


def turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Every turn of a row of any shape except system turns, which many rows have in common."""
    found = [turn for column in _COLUMNS for turn in row.get(column) or ()]
    return [turn for turn in found if turn["role"] != "system"]


def turn_texts(row: dict[str, Any]) -> list[str]:
    """Texts of the turns."""
    return [turn["content"] for turn in turns(row) if isinstance(turn.get("content"), str)]


def all_strings(value: Any) -> Iterator[str]:
    """Every text anywhere in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from all_strings(child)


def words(text: str) -> list[str]:
    """Lower case, without punctuation and space."""
    return _WORD.findall(text.lower())


def shingles(row: dict[str, Any]) -> set[str]:
    """Runs of `SHINGLE_WORDS` words over the turns of each column; a shorter column is one shingle.

    A pair with its answers exchanged, and an answer with the other label, are no duplicates.
    """
    found: set[str] = set()
    for column in _COLUMNS:
        texts = turn_texts({column: row.get(column)})
        if not texts:
            continue
        mark = f"{column} {row.get('label', '')}: " if column != "messages" else ""
        own = [word for text in texts for word in words(text)]
        if len(own) <= SHINGLE_WORDS:
            found.add(mark + (" ".join(own) or "\n".join(texts)))
        else:
            starts = range(len(own) - SHINGLE_WORDS + 1)
            found.update(mark + " ".join(own[start : start + SHINGLE_WORDS]) for start in starts)
    return found or {""}


def jaccard(one: set[str], other: set[str]) -> float:
    """Size of the intersection over that of the union."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def content(row: dict[str, Any]) -> bytes:
    """A row without its number as JSON: equal for exact duplicates."""
    own = {key: value for key, value in row.items() if key not in ("row", "part")}
    return orjson.dumps(own, option=orjson.OPT_SORT_KEYS)


def place(row: dict[str, Any]) -> dict[str, int]:
    """Number of the source row, and of the example where a row gave several."""
    return {key: row[key] for key in ("row", "part") if key in row}


def excerpt(row: dict[str, Any]) -> str:
    """The first words of a row, for a reader."""
    return " | ".join(" ".join(text.split())[:120] for text in turn_texts(row))[:240]
