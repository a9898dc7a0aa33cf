"""Conversations of normalised messages (`message.py`), and the checks that rows of all shapes (`shapes/`) share.

Roles are system (first only), user, assistant and tool. User and assistant alternate; a tool turn follows an
assistant turn with `tool_calls` or another tool turn, and the user may speak after it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from post_training.data import shapes
from post_training.data.columns import as_objects
from post_training.data.message import ROLES, InvalidRow, Message, check_numbers, normalised, parsed, visible
from post_training.data.shapes import PROMPTS
from post_training.data.vendor_forms import item_kind, of_items, of_transcript, openai_tools, opened

__all__ = ["PROMPTS", "InvalidRow", "Message"]

_FOLLOWS = {
    (None, "system"), (None, "user"), ("system", "user"), ("assistant", "user"), ("user", "assistant"),
    ("tool", "assistant"), ("tool", "tool"), ("tool", "user"),
}  # fmt: skip
TURN_COLUMNS = ("messages", "prompt", "chosen", "rejected", "completion")
"""Columns of rows of all shapes that hold messages."""
_BLANKS = " \t\n\r\f\v\u00a0\u00ad\u200b\u200c\u200d\u2028\u2029\u2060\u3000\ufeff"
_INNER_BLANKS = re.compile(r"(?<=\S)[^\S\n]+")


class Example(TypedDict, total=False):
    """Keys of all shapes: tools in OpenAI's form, and the source row in `rows.jsonl`."""

    tools: list[dict[str, Any]]
    row: int
    """Number of the source row, from 1 over all files: the line of JSON Lines, blank ones counted, or the row of a table."""
    part: int
    """Which of the examples of its source row it is, where there are several."""


@dataclass
class Rules:
    """`data.last_turn`, trim or reject turns after the assistant's last one, and how often it applied."""

    last_turn: str = "trim"
    trimmed_rows: int = 0
    trimmed_turns: int = 0


def checker(shape: str) -> Callable[[dict[str, Any], Rules], dict[str, Any]]:
    """The check of a transformed row of a shape, of `any` (by its columns), or of `prompts`: gives the row, or raises InvalidRow."""
    if shape == "any":
        return _check_any
    if shape == PROMPTS:
        return _check_prompt
    validate: Callable[[dict[str, Any], Rules], dict[str, Any]] = shapes.load(shape).validate
    return validate


def _check_any(row: dict[str, Any], rules: Rules) -> dict[str, Any]:
    shape = shapes.name_of(row) or "messages"
    if shape == "unpaired":
        raise InvalidRow("not_comparable", "an evaluation measures conversations and pairs, not answers with a label")
    return checker(shape)(row, rules)


def _check_prompt(row: dict[str, Any], _: Rules) -> dict[str, Any]:
    """`{"prompt": [...], "columns": {...}}`: the turns up to the user's last one, and whatever else the row has.

    What the assistant answers there is the column `answer`, unless the row has one; of answers only their text is kept.
    """
    key = "prompt" if "prompt" in row else "messages"
    found = turns(row, key)
    size = next((index for index in range(len(found), 0, -1) if found[index - 1]["role"] == "user"), 0)
    if not size:
        raise InvalidRow("no_user_turn")
    check_order(found[:size])
    columns = {name: _text_of(value) for name, value in row.items() if name not in (key, "tools")}
    if size < len(found):
        columns.setdefault("answer", found[size]["content"])
    return {"prompt": found[:size], **check_tools(row), "columns": columns}


def _text_of(value: Any) -> Any:
    """The text of an answer's messages; anything else as it is."""
    is_answer = isinstance(value, list) and value and all(isinstance(one, dict) and "role" in one for one in value)
    return value[-1].get("content") if is_answer else value


def turns(row: dict[str, Any], key: str) -> list[Message]:
    """The messages of one column, each checked and normalised. Raises InvalidRow."""
    found = row.get(key)
    if not isinstance(found, list):
        if found is None:
            raise InvalidRow("missing_column", key)
        raise InvalidRow("wrong_type", f"{key} is {type(found).__name__}, expected a list of messages")
    if not found:
        raise InvalidRow("empty_conversation", key)
    made: list[Message] = []
    for index, turn in enumerate(found):
        if type(turn) is dict and len(turn) == 2:  # fast path for the common case
            content = turn.get("content")
            if type(content) is str and turn.get("role") in ROLES and visible(content):
                made.append(turn)  # type: ignore[arg-type]
                continue
        if item_kind(turn):
            return turns({key: of_items(found)}, key)
        made += [normalised(one, f"{key}[{index}]") for one in opened(turn)]
    if len(made) <= 3:
        first = made[0]["role"] == "system" and len(made) > 1
        if made[first]["role"] == "user" and (said := of_transcript(made[first]["content"])):
            made[first : first + 1] = [normalised(turn, f"{key}[{first:d}]") for turn in said]
    return made


def check_order(turns: list[Message]) -> None:
    """Raise InvalidRow where a role may not follow the one before it."""
    before = None
    for index, turn in enumerate(turns):
        role = turn["role"]
        if (before, role) not in _FOLLOWS and not (
            before == "assistant" and role == "tool" and "tool_calls" in turns[index - 1]
        ):
            remedy = ": it calls no tool; where calls are written in its text, name the transform's roles: {tool: user}"
            problem = f"turn {index}: {role} after {before or 'nothing'}"
            raise InvalidRow("role_order", problem + (remedy if before == "assistant" and role == "tool" else ""))
        before = role


def check_trained(turns: list[Message]) -> None:
    """Raise InvalidRow where flags leave no turn to be trained on."""
    if any("train" in turn for turn in turns) and all("train" in turn for turn in turns if turn["role"] == "assistant"):
        raise InvalidRow("no_trained_turn", "its flags leave no assistant turn to be trained on")


def end_with_assistant(turns: list[Message], rules: Rules) -> list[Message]:
    """The turns up to the assistant's last one, by `data.last_turn`. Raises InvalidRow."""
    last = turns[-1]["role"]
    if last == "assistant":
        return turns
    size = next((index for index in range(len(turns), 0, -1) if turns[index - 1]["role"] == "assistant"), 0)
    if not size:
        raise InvalidRow("no_assistant_turn")
    if rules.last_turn == "reject":
        raise InvalidRow("last_turn_not_assistant", f"it is {last}'s")
    rules.trimmed_rows += 1
    rules.trimmed_turns += len(turns) - size
    return turns[:size]


def without_repeats(row: dict[str, Any], answers: tuple[str, ...]) -> dict[str, Any]:
    """The row; where its answers are conversations that repeat the prompt, they begin after it, and what they begin with belongs to it."""
    asked: Any = row.get("prompt")
    said: list[Any] = [row.get(key) for key in answers]
    if not isinstance(asked, list) or not asked or not all(isinstance(one, list) and len(one) > 1 for one in said):
        return row
    first = said[0]
    if _role(first[0]) not in ("system", "user"):
        return row
    size = next(
        (n for n, turns in enumerate(zip(*said, strict=False)) if any(t != turns[0] for t in turns)), len(first)
    )
    size = min(size, *(len(one) - 1 for one in said))
    system = asked[: _role(asked[0]) == "system"]
    core, own = asked[len(system) :], first[: _role(first[0]) == "system"]
    end = next((n for n in range(size, len(core) - 1, -1) if first[n - len(core) : n] == core), 0)
    if not core or not end or (system and own and system != own):
        return row
    cut = {key: one[end:] for key, one in zip(answers, said, strict=True)}
    return {**row, "prompt": [*([] if own else system), *first[:end]], **cut}


def _role(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, dict) else None


def prompt(row: dict[str, Any]) -> list[Message]:
    """The messages that are asked, none of which is trained on."""
    made = turns(row, "prompt")
    for turn in made:
        turn.pop("train", None)
    return made


def answer(row: dict[str, Any], key: str, prompt: list[Message], rules: Rules) -> list[Message]:
    """The messages of an answer to the prompt, ending with the assistant."""
    made = end_with_assistant(turns(row, key), rules)
    check_order([*prompt, *made])
    if any("train" in turn for turn in made):
        raise InvalidRow(
            "train_flag", f"{key} has turns that are not to be trained on, but an answer is compared as a whole"
        )
    return made


def differ_in_blanks(one: list[Message], other: list[Message]) -> bool:
    """Whether two different answers are the same but for blanks, indentation apart."""
    if len(one) != len(other) or any(map(_more_than_blanks, one, other)):
        return False
    return _without_blanks(one) == _without_blanks(other)


def _more_than_blanks(one: Message, other: Message) -> bool:
    """Whether the numbers of other characters tell that they differ: cheap, and true of nearly all pairs."""
    return _characters(one["content"]) != _characters(other["content"])


def _characters(text: str) -> int:
    return len(text) - sum(map(text.count, " \t\n\r\f\v" if text.isascii() else _BLANKS))


def _without_blanks(turns: list[Message]) -> list[Any]:
    return [{**turn, "content": _INNER_BLANKS.sub(" ", _stripped(turn["content"]))} for turn in turns]


def _stripped(text: str) -> str:
    """Without what nobody sees at its ends and at the ends of its lines."""
    return "\n".join(filter(None, (line.rstrip(_BLANKS) for line in text.strip(_BLANKS).split("\n"))))


def check_tools(row: dict[str, Any]) -> Example:
    """`{"tools": [...]}` in OpenAI's form, or `{}`, from a list or its JSON text. Raises InvalidRow."""
    tools = row.get("tools")
    if not tools:
        return {}
    if isinstance(tools, str):
        tools = parsed(tools, "tools")
        if not tools:
            return {}
    tools = as_objects(tools)
    if not isinstance(tools, list):
        raise InvalidRow("wrong_type", f"tools is {type(tools).__name__}, expected a list of objects")
    made = []
    for index, tool in enumerate(openai_tools(tools)):
        if isinstance(tool, str):
            tool = parsed(tool, f"tools[{index}]")
        if not isinstance(tool, dict):
            raise InvalidRow("wrong_type", f"tools[{index}] is {type(tool).__name__}, expected an object")
        bare = "function" not in tool and "name" in tool
        made.append({"type": "function", "function": tool} if bare else tool)
    check_numbers(made, "tools")
    return {"tools": made}
