"""One message in its many spellings -> `{"role", "content"}`.

Content is text; where it has them there are `tool_calls` (in OpenAI's form, arguments as an object), `reasoning_content`,
`name` and `tool_call_id`. Typed content blocks become text, reasoning gets one name, `function_call` and blocks of calls become
tool calls, and null keys, which parquet fills in, are removed. An assistant turn that is not to be trained on (`train`,
`loss` or `weight` false or 0) has `train: false`; other turns are not trained on anyway.
"""

import re
from typing import Any, NotRequired, TypedDict

import orjson

from post_training.data.columns import as_objects

ROLES = ("system", "user", "assistant", "tool")
_TEXT_BLOCKS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_RESULT_BLOCKS = ("tool_result", "tool_response")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TRAIN = ("train", "loss", "weight")
KNOWN_KEYS = frozenset(("role", "content", "tool_calls", "reasoning_content", "name", "tool_call_id", "train"))
"""Of a normalised message; any other is kept for templates that know it."""
# Text that nobody sees: white space, control characters, and what Unicode calls default ignorable (zero-width characters, byte
# order marks, variation selectors, fillers, tags).
visible = re.compile(
    "[^\\s\\x00-\\x1f\\x7f-\\x9f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b-\\u200f\\u2028-\\u202e"
    "\\u2060-\\u206f\\u2800\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufff8\\U000e0000-\\U000e0fff]"
).search
"""The first character of a text that is seen, or None."""


class Message(TypedDict):
    """One normalised turn."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    reasoning_content: NotRequired[str]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]
    train: NotRequired[bool]
    """False for an assistant turn that is not trained on; absent otherwise."""


class InvalidRow(Exception):
    """A row that cannot be used: a reason code and details."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def normalised(turn: Any, where: str) -> Message:
    """The message; `where` is its place for messages. Raises InvalidRow."""
    if not isinstance(turn, dict):
        raise InvalidRow("wrong_type", f"{where} is {type(turn).__name__}, expected a message")
    rest = {key: value for key, value in turn.items() if value is not None}
    role, content = rest.pop("role", None), rest.pop("content", None)
    if role not in ROLES:
        keys = [key for key in turn if key in rest or (key == "content" and content is not None)]
        has = f"{where} has no role (it has {', '.join(map(str, keys))[:80]})"
        raise InvalidRow("unknown_role", f"{where}: {role!r}" if role is not None else has)
    trained = _is_trained(rest, where)
    if isinstance(content, dict):
        content = _of_object(content, role)
    if isinstance(content, list):
        content = _take_calls(content, rest, where)
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
    if not calls and role != "tool" and not visible(content):
        raise InvalidRow("empty_content", where)
    if any(not isinstance(text, str) for text in reasoning):
        raise InvalidRow("wrong_type", f"{where}.reasoning_content is not text")
    thought = next((text for text in reasoning if text), None)
    extra: dict[str, Any] = {"reasoning_content": thought} if thought else {}
    if not trained and role == "assistant":
        extra["train"] = False
    message: Any = {"role": role, "content": content, **rest, **extra, **({"tool_calls": calls} if calls else {})}
    return message  # type: ignore[no-any-return]


def _of_object(content: dict[str, Any], role: str) -> Any:
    """Content that is one block, an object of the lists of several, or what a tool gave, which becomes JSON text; else as it is."""
    blocks = as_objects(content) if "type" in content else content
    if isinstance(blocks, dict) and blocks.get("type") in ("text", "input_text", "output_text"):
        return [blocks]
    return orjson.dumps(blocks, default=str).decode() if isinstance(blocks, dict) and role == "tool" else blocks


def _is_trained(turn: dict[str, Any], where: str) -> bool:
    """What the flags of a turn say, which are taken out of it."""
    flags = {key: turn.pop(key) for key in _TRAIN if key in turn}
    for key, value in flags.items():
        if value not in (0, 1) or isinstance(value, str):
            raise InvalidRow("train_flag", f"{where}.{key} is {value!r:.40}, expected true, false, 1 or 0")
    if len({bool(value) for value in flags.values()}) > 1:
        raise InvalidRow("train_flag", f"{where}: {' and '.join(flags)} say different things")
    return all(flags.values())


def _take_calls(blocks: list[Any], turn: dict[str, Any], where: str) -> list[Any]:
    """The blocks that are no tool calls; those that are become the turn's."""
    calls = [block for block in blocks if isinstance(block, dict) and block.get("type") in ("tool_call", "tool_use")]
    if not calls:
        return blocks
    if turn.get("tool_calls"):
        raise InvalidRow("bad_tool_call", f"{where}: has tool_calls, and blocks of the same beside them")
    turn["tool_calls"] = [_call_of_block(block, where) for block in calls]
    return [block for block in blocks if block not in calls]


def _call_of_block(block: dict[str, Any], where: str) -> Any:
    """The call as JSON text or an object below the type, below `value`, or in the block itself."""
    found = block.get(block["type"], block.get("value", block.get("content")))
    if isinstance(found, str):
        found = parsed(found, f"{where}.content")
    if found is None:
        identity = {"id": block["id"]} if block.get("id") is not None else {}
        found = {**identity, "name": block.get("name"), "arguments": block.get("arguments", block.get("input"))}
    return found


def _text_of_blocks(blocks: list[Any], where: str) -> tuple[str, list[Any]]:
    """The text of typed content blocks, and the reasoning among them."""
    parts, thoughts = [], []
    for index, block in enumerate(blocks):
        if not isinstance(block, dict):
            raise InvalidRow(
                "wrong_type", f"{where}.content[{index}] is {type(block).__name__}, expected a block of text"
            )
        kind = block.get("type")
        kind = kind if isinstance(kind, str) else ""
        names = (_TEXT_BLOCKS.get(kind, kind), "text", "content", "value")
        text = next((block[name] for name in names if block.get(name) is not None), None)
        if kind in _TEXT_BLOCKS or kind in _RESULT_BLOCKS:
            if not isinstance(text, str):
                raise InvalidRow("wrong_type", f"{where}.content[{index}] has no text")
            parts.append(text)
        elif kind in ("thinking", "reasoning"):
            thoughts.append(text)
        else:
            problem = f"{where}.content[{index}] is {f'of type {kind!r:.40}' if kind else f'{block!r:.60}'}, which is not supported: only text is trained on"
            raise InvalidRow("unsupported_content", problem)
    return "".join(parts), thoughts


def _tool_calls(turn: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Taken out of a turn: `[{"id"?, "type": "function", "function": {"name", "arguments": {...}}}, ...]`."""
    calls, old = turn.pop("tool_calls", None), turn.pop("function_call", None)
    where = f"{where}.tool_calls" if calls else f"{where}.function_call"
    calls = calls or ([old] if old else [])
    calls = as_objects(parsed(calls, where) if isinstance(calls, str) else calls)
    if not isinstance(calls, list):
        raise InvalidRow("wrong_type", f"{where} is {type(calls).__name__}, expected a list")
    made = []
    for call in calls:
        function = (call.get("function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name:
            raise InvalidRow("bad_tool_call", f"{where}: names no function")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = parsed(arguments, f"{where}: arguments of {name}") if arguments.strip() else {}
        if not isinstance(arguments, dict | None):
            raise InvalidRow(
                "bad_tool_call", f"{where}: arguments of {name} are {type(arguments).__name__}, expected an object"
            )
        check_numbers(arguments, f"{where}: arguments of {name}")
        identity = {"id": call["id"]} if call.get("id") is not None else {}
        made.append({**identity, "type": "function", "function": {"name": name, "arguments": arguments or {}}})
    return made


def parsed(text: str, where: str) -> Any:
    """JSON text of a tool or a call. Raises InvalidRow."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = "wrong_type" if where.startswith("tools") else "bad_tool_call"
        raise InvalidRow(reason, f"{where}: not JSON ({error})") from None


def check_numbers(value: Any, where: str) -> None:
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
