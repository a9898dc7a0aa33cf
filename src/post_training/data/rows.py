"""The two row shapes and what is wrong with a row that has neither.

- `messages`: `{"messages": [{"role", "content"}, ...], "tools"?: [...]}`, ending with the assistant.
- `preference`: `{"prompt": [...], "chosen": [...], "rejected": [...]}`, all messages.

Roles are system (first only), user, assistant and tool. User and assistant alternate; a tool turn
follows an assistant turn with `tool_calls` or another tool turn. A conversation whose last turn is
not the assistant's is rejected, not trimmed: what was cut would be lost without a trace.
"""

from typing import Any

ROLES = ("system", "user", "assistant", "tool")
Checked = tuple[dict[str, Any] | None, str, str]
"""(row or None, reason code, detail); the reason is empty for a good row."""


class _Bad(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def validate(row: Any, shape: str) -> Checked:
    """Check a transformed row; `shape` is `messages`, `preference` or `any` (by its keys)."""
    try:
        if not isinstance(row, dict):
            raise _Bad("not_an_object", f"the transform returned {type(row).__name__}")
        if shape == "any":
            shape = "preference" if "chosen" in row else "messages"
        return (_preference(row) if shape == "preference" else _messages(row)), "", ""
    except _Bad as bad:
        return None, bad.reason, bad.detail


def _messages(row: dict[str, Any]) -> dict[str, Any]:
    turns = _turns(row, "messages")
    _check_order(turns)
    if not any(turn["role"] == "assistant" for turn in turns):
        raise _Bad("no_assistant_turn")
    if turns[-1]["role"] != "assistant":
        raise _Bad("last_turn_not_assistant", f"it is {turns[-1]['role']}'s")
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise _Bad("wrong_type", "tools is not a list of objects")
    return {"messages": turns, **({"tools": tools} if tools else {})}


def _preference(row: dict[str, Any]) -> dict[str, Any]:
    prompt, chosen, rejected = (_turns(row, key) for key in ("prompt", "chosen", "rejected"))
    for answer in (chosen, rejected):
        _check_order([*prompt, *answer])
        if answer[-1]["role"] != "assistant":
            raise _Bad("last_turn_not_assistant", f"it is {answer[-1]['role']}'s")
    if chosen == rejected:
        raise _Bad("identical_pair")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _turns(row: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The checked messages of one column, without the keys that are null (parquet fills those in)."""
    if row.get(key) is None:
        raise _Bad("missing_column", key)
    turns = row[key]
    if not isinstance(turns, list):
        raise _Bad("wrong_type", f"{key} is {type(turns).__name__}, expected a list of messages")
    if not turns:
        raise _Bad("empty_conversation", key)
    return [_turn(turn, f"{key}[{index}]") for index, turn in enumerate(turns)]


def _turn(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise _Bad("wrong_type", f"{where} is {type(turn).__name__}, expected a message")
    turn = {key: value for key, value in turn.items() if value is not None}
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise _Bad("unknown_role", f"{where}: {role!r}")
    calls = turn.get("tool_calls")
    if calls is not None and not (role == "assistant" and isinstance(calls, list)):
        raise _Bad("wrong_type", f"{where}.tool_calls")
    if content is None and calls:
        return turn
    if not isinstance(content, str):
        found = "missing" if content is None else type(content).__name__
        raise _Bad("wrong_type", f"{where}.content is {found}, expected text")
    if not content.strip() and not calls and role != "tool":
        raise _Bad("empty_content", where)
    try:
        content.encode()
    except UnicodeEncodeError:
        raise _Bad("undecodable_text", f"{where}: half a surrogate pair, which no file can hold") from None
    return turn


def _check_order(turns: list[dict[str, Any]]) -> None:
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
            raise _Bad("role_order", f"turn {index}: {role} after {before or 'nothing'}")
        before = role
