"""Normalised messages, and the checks that rows of all shapes (`shapes/`) share.

A message is `{"role", "content"}`, content being text, with where it has them `tool_calls` (in OpenAI's form, arguments
as an object), `reasoning_content`, `name` and `tool_call_id`. Typed content blocks become text, reasoning gets one
name, `function_call` becomes a tool call, and null keys, which parquet fills in, are removed.

Roles are system (first only), user, assistant and tool. User and assistant alternate; a tool turn follows an
assistant turn with `tool_calls` or another tool turn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import orjson

from post_training.data import shapes

PROMPTS = "prompts"
"""In place of a shape: rows that a model is to answer."""
ROLES = ("system", "user", "assistant", "tool")
_FOLLOWS = {
    (None, "system"), (None, "user"), ("system", "user"), ("assistant", "user"), ("user", "assistant"),
    ("tool", "assistant"), ("tool", "tool"),
}  # fmt: skip
_TEXT_BLOCKS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_REASONING = ("reasoning_content", "reasoning", "thinking")


class Message(TypedDict):
    """One normalised turn."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    reasoning_content: NotRequired[str]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]


class Example(TypedDict, total=False):
    """Keys of all shapes: tools in OpenAI's form, and the source row in `rows.jsonl`."""

    tools: list[dict[str, Any]]
    row: int
    """Number of the source row, from 0 over all files."""
    part: int
    """Which of the examples of its source row it is, where there are several."""


class InvalidRow(Exception):
    """A row that cannot be used: a reason code and details."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


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
            if type(content) is str and turn.get("role") in ROLES and content and not content.isspace():
                made.append(turn)  # type: ignore[arg-type]
                continue
        made.append(_turn(turn, f"{key}[{index}]"))
    return made


def check_order(turns: list[Message]) -> None:
    """Raise InvalidRow where a role may not follow the one before it."""
    before = None
    for index, turn in enumerate(turns):
        role = turn["role"]
        if (before, role) not in _FOLLOWS and not (
            before == "assistant" and role == "tool" and "tool_calls" in turns[index - 1]
        ):
            raise InvalidRow("role_order", f"turn {index}: {role} after {before or 'nothing'}")
        before = role


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


def answer(row: dict[str, Any], key: str, prompt: list[Message], rules: Rules) -> list[Message]:
    """The messages of an answer to the prompt, ending with the assistant."""
    made = end_with_assistant(turns(row, key), rules)
    check_order([*prompt, *made])
    return made


def check_tools(row: dict[str, Any]) -> Example:
    """`{"tools": [...]}` in OpenAI's form, or `{}`, from a list or its JSON text. Raises InvalidRow."""
    tools = row.get("tools")
    if not tools:
        return {}
    if isinstance(tools, str):
        tools = _parsed(tools, "tools")
        if not tools:
            return {}
    if not isinstance(tools, list):
        raise InvalidRow("wrong_type", f"tools is {type(tools).__name__}, expected a list of objects")
    made = []
    for index, tool in enumerate(tools):
        if isinstance(tool, str):
            tool = _parsed(tool, f"tools[{index}]")
        if not isinstance(tool, dict):
            raise InvalidRow("wrong_type", f"tools[{index}] is {type(tool).__name__}, expected an object")
        bare = "function" not in tool and "name" in tool
        made.append({"type": "function", "function": tool} if bare else tool)
    _check_numbers(made, "tools")
    return {"tools": made}


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise InvalidRow("wrong_type", f"{where} is {type(turn).__name__}, expected a message")
    rest = {key: value for key, value in turn.items() if value is not None}
    role, content = rest.pop("role", None), rest.pop("content", None)
    if role not in ROLES:
        raise InvalidRow("unknown_role", f"{where}: {role!r}" if role is not None else f"{where} has no role")
    if rest.get("weight") == 0:
        raise InvalidRow(
            "message_weight", f"{where}.weight is 0, a turn that must not be trained on, which no row can say"
        )
    calls = _tool_calls(rest, where)
    if calls and role != "assistant":
        raise InvalidRow("wrong_type", f"{where}.tool_calls: only the assistant calls tools")
    reasoning = [rest.pop(key) for key in _REASONING if key in rest]
    if content is None:
        content = rest.pop("refusal", "" if calls or role == "tool" else None)
    if isinstance(content, list):
        content, thoughts = _text_of_blocks(content, where)
        reasoning += thoughts
    if not isinstance(content, str):
        found = "missing" if content is None else type(content).__name__
        raise InvalidRow("wrong_type", f"{where}.content is {found}, expected text")
    if (not content or content.isspace()) and not calls and role != "tool":
        raise InvalidRow("empty_content", where)
    if any(not isinstance(text, str) for text in reasoning):
        raise InvalidRow("wrong_type", f"{where}.reasoning_content is not text")
    thought = next((text for text in reasoning if text), None)
    extra = {"reasoning_content": thought} if thought else {}
    message: Any = {"role": role, "content": content, **rest, **extra, **({"tool_calls": calls} if calls else {})}
    return message  # type: ignore[no-any-return]


def _text_of_blocks(blocks: list[Any], where: str) -> tuple[str, list[Any]]:
    """The text of typed content blocks, and the reasoning among them."""
    parts, thoughts = [], []
    for index, block in enumerate(blocks):
        if not isinstance(block, dict):
            raise InvalidRow(
                "wrong_type", f"{where}.content[{index}] is {type(block).__name__}, expected a block of text"
            )
        kind = block.get("type")
        if kind in _TEXT_BLOCKS:
            text = block.get(_TEXT_BLOCKS[kind])
            if not isinstance(text, str):
                raise InvalidRow("wrong_type", f"{where}.content[{index}] has no text")
            parts.append(text)
        elif kind in ("thinking", "reasoning"):
            thoughts.append(block.get(kind, block.get("text")))
        else:
            raise InvalidRow("unsupported_content", f"{where}.content[{index}] is of type {kind!r}, expected text")
    return "".join(parts), thoughts


def _tool_calls(turn: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Taken out of a turn: `[{"id"?, "type": "function", "function": {"name", "arguments": {...}}}, ...]`."""
    calls, old = turn.pop("tool_calls", None), turn.pop("function_call", None)
    where = f"{where}.tool_calls" if calls else f"{where}.function_call"
    calls = calls or ([old] if old else [])
    if isinstance(calls, str):
        calls = _parsed(calls, where)
    if not isinstance(calls, list):
        raise InvalidRow("wrong_type", f"{where} is {type(calls).__name__}, expected a list")
    made = []
    for call in calls:
        function = (call.get("function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name:
            raise InvalidRow("bad_tool_call", f"{where}: names no function")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _parsed(arguments, f"{where}: arguments of {name}") if arguments.strip() else {}
        if not isinstance(arguments, dict | None):
            raise InvalidRow(
                "bad_tool_call", f"{where}: arguments of {name} are {type(arguments).__name__}, expected an object"
            )
        _check_numbers(arguments, f"{where}: arguments of {name}")
        identity = {"id": call["id"]} if call.get("id") is not None else {}
        made.append({**identity, "type": "function", "function": {"name": name, "arguments": arguments or {}}})
    return made


def _parsed(text: str, where: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = "wrong_type" if where.startswith("tools") else "bad_tool_call"
        raise InvalidRow(reason, f"{where}: not JSON ({error})") from None


def _check_numbers(value: Any, where: str) -> None:
    """Raise InvalidRow for integers beyond 64 bits, which the JSON reader has rounded."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, float) and abs(value) >= 2.0**63 and value.is_integer():
            raise InvalidRow("huge_number", f"{where}: {value!r} does not fit 64 bits; write it as text")
