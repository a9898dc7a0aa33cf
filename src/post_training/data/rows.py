"""What is wrong with a row's messages, whatever its shape (`shapes/`) asks besides.

Roles are system (first only), user, assistant and tool. User and assistant alternate; a tool turn
follows an assistant turn with `tool_calls` or another tool turn.
"""

from typing import Any

from post_training.data import shapes

ROLES = ("system", "user", "assistant", "tool")
Checked = tuple[dict[str, Any] | None, str, str]
"""(row or None, reason code, detail); the reason is empty for a good row."""


class Bad(Exception):
    """A row that cannot be used: a reason code, and what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def validate(row: Any, shape: str) -> Checked:
    """Check a transformed row; `shape` names a shape, or is `any` (by its columns)."""
    try:
        if not isinstance(row, dict):
            raise Bad("not_an_object", f"the transform returned {type(row).__name__}")
        if shape == "any":
            shape = shapes.name_of(row) or "messages"
            if shape == "unpaired":
                raise Bad("not_comparable", "an evaluation measures conversations and pairs, not answers with a label")
        return shapes.load(shape).validate(row), "", ""
    except Bad as bad:
        return None, bad.reason, bad.detail


def check_answer(prompt: list[dict[str, Any]], answer: list[dict[str, Any]]) -> None:
    """An answer goes on where the prompt ends, and its last turn is the assistant's."""
    check_order([*prompt, *answer])
    if answer[-1]["role"] != "assistant":
        raise Bad("last_turn_not_assistant", f"it is {answer[-1]['role']}'s")


def check_tools(row: dict[str, Any]) -> dict[str, Any]:
    """`{"tools": [...]}`, or nothing where there are none."""
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise Bad("wrong_type", "tools is not a list of objects")
    return {"tools": tools} if tools else {}


def turns(row: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The checked messages of one column, without the keys that are null (parquet fills those in)."""
    if row.get(key) is None:
        raise Bad("missing_column", key)
    found = row[key]
    if not isinstance(found, list):
        raise Bad("wrong_type", f"{key} is {type(found).__name__}, expected a list of messages")
    if not found:
        raise Bad("empty_conversation", key)
    return [_turn(turn, f"{key}[{index}]") for index, turn in enumerate(found)]


def _turn(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise Bad("wrong_type", f"{where} is {type(turn).__name__}, expected a message")
    turn = {key: value for key, value in turn.items() if value is not None}
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise Bad("unknown_role", f"{where}: {role!r}")
    calls = turn.get("tool_calls")
    if calls is not None and not (role == "assistant" and isinstance(calls, list)):
        raise Bad("wrong_type", f"{where}.tool_calls")
    if content is None and calls:
        return turn
    if not isinstance(content, str):
        found = "missing" if content is None else type(content).__name__
        raise Bad("wrong_type", f"{where}.content is {found}, expected text")
    if not content.strip() and not calls and role != "tool":
        raise Bad("empty_content", where)
    try:
        content.encode()
    except UnicodeEncodeError:
        raise Bad("undecodable_text", f"{where}: half a surrogate pair, which no file can hold") from None
    return turn


def check_order(turns: list[dict[str, Any]]) -> None:
    """Who may speak after whom."""
    before = None
    for index, turn in enumerate(turns):
        role = turn["role"]
        allowed = {
            "system": before is None,
            "user": before in (None, "system", "assistant"),
            "assistant": before in ("user", "tool"),
            "tool": before == "tool" or (before == "assistant" and bool(turns[index - 1].get("tool_calls"))),
        }[role]
        if not allowed:
            raise Bad("role_order", f"turn {index}: {role} after {before or 'nothing'}")
        before = role
