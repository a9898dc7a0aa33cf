"""What several transforms share: text of columns, turns in their many spellings, pairs of ranked answers."""

import json
import re
from collections.abc import Callable
from itertools import permutations
from typing import Any

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""Names of roles in public data -> ours. A name that is not here is left for the validator to refuse."""
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")
PAIRS = ("best_worst", "best_rest", "all")


def text(row: dict[str, Any], columns: Any) -> str:
    """The text of a column; of several, those that are not empty with blank lines between; or of a template.

    A template is text with columns in braces, `"{context}\\n\\nQuestion: {question}"`; `{{` and `}}` are braces.
    """
    if isinstance(columns, list):
        return "\n\n".join(
            part for column in columns if row[column] is not None and (part := _flat(row[column], column))
        )
    if "{" in columns and columns not in row:
        braces = {"{{": "{", "}}": "}"}
        return _PLACE.sub(lambda place: braces.get(place[0]) or _flat(row[place[1]], place[1], numbers=True), columns)
    if row[columns] is None:
        raise KeyError(columns)
    return _flat(row[columns], columns)


def _flat(value: Any, column: str, numbers: bool = False) -> str:
    """Text as it is; a list of texts, nested or not, one a line."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_flat(part, column, numbers) for part in value)
    if numbers and isinstance(value, int | float):
        return str(value)
    raise TypeError(f"{column} is {type(value).__name__}, expected text")


def read_json(value: Any, column: str, reason: str = "not_json") -> Any:
    """A value that is written as JSON text; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{reason}: {column} is not JSON ({error})") from None


def turns(value: Any, role: str, content: str, roles: dict[str, str] = ROLES) -> list[Any]:
    """A list of turns with their role and content under our names, whatever else they hold kept.

    Args:
        value: the list.
        role: key of the role in a turn.
        content: key of the content in a turn.
        roles: names of roles -> ours.
    """
    if not isinstance(value, list):
        raise TypeError(f"found {type(value).__name__}, expected a list of turns")
    made = []
    for turn in value:
        if isinstance(turn, dict):
            spoken = turn.get(role)
            named = roles.get(spoken, spoken) if isinstance(spoken, str) else spoken
            if len(turn) == 2 and content in turn and role in turn:
                turn = {"role": named, "content": turn[content]}
            else:
                rest = {key: part for key, part in turn.items() if key not in (role, content)}
                turn = {"role": named, "content": turn.get(content), **rest}
        made.append(turn)
    return made


def messages(value: Any, speaker: str) -> list[Any]:
    """Messages of a column that holds text, one turn or a list of turns, `role` and `content` or `from` and `value`.

    Text is what `speaker` says.
    """
    if isinstance(value, str):
        return [{"role": speaker, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise TypeError(f"found {type(value).__name__}, expected text or a list of messages")
    sharegpt = any(isinstance(turn, dict) and "from" in turn for turn in value)
    return turns(value, *(("from", "value") if sharegpt else ("role", "content")))


def ranked_pairs(count: int, better: Callable[[int, int], bool], choice: str) -> list[tuple[int, int]]:
    """Pairs (better, worse) of `count` answers.

    Args:
        count: answers.
        better: whether the first is better than the second.
        choice: `best_worst`, one pair of those that win most and least; `best_rest`, the best with every other that it
            beats; `all`, every decided pair.
    """
    if choice not in PAIRS:
        raise ValueError(f"unknown_choice: pairs is {choice!r}, expected one of {', '.join(PAIRS)}")
    decided = [(first, second) for first, second in permutations(range(count), 2) if better(first, second)]
    if choice == "all" or not decided:
        return decided
    wins = [
        sum(pair[0] == answer for pair in decided) - sum(pair[1] == answer for pair in decided)
        for answer in range(count)
    ]
    best, worst = wins.index(max(wins)), wins.index(min(wins))
    if choice == "best_rest":
        return [(best, answer) for answer in range(count) if (best, answer) in decided]
    return [(best, worst)] if (best, worst) in decided else []
