"""Rows that are conversations already."""

from typing import Any

from post_training.data.transforms import register_transform
from post_training.data.transforms._parts import read_json, turns

_ROLES = {"developer": "system", "function": "tool"}


@register_transform("messages", gives="messages")
def messages(
    row: dict[str, Any],
    column: str = "messages",
    tools: str = "tools",
    role: str = "role",
    content: str = "content",
    roles: dict[str, str] | None = None,
    system: str | None = None,
) -> dict[str, Any]:
    """A column of messages in OpenAI's form, and the tools that they may call when there are any.

    Tool calls, tool results, typed content blocks and reasoning are taken as they are; a list that is written as JSON
    text is read. `role` and `content` name the keys of a message, `roles` maps names of roles to system, user,
    assistant and tool, `system` names a column with a system prompt.

    >>> messages({"messages": [{"role": "user", "content": "hi"}], "source": "x"})
    {'messages': [{'role': 'user', 'content': 'hi'}]}
    """
    found = row[column]
    if found is None:
        raise KeyError(column)
    if isinstance(found, str):
        found = read_json(found, column)
    if role != "role" or content != "content" or roles:
        found = turns(found, role, content, {**_ROLES, **(roles or {})})
    elif any(isinstance(turn, dict) and turn.get("role") in ("developer", "function") for turn in found):
        found = turns(found, role, content, _ROLES)
    if system is not None and row.get(system):
        found = [{"role": "system", "content": row[system]}, *found]
    offered = row.get(tools) or row.get("functions")
    return {"messages": found, "tools": offered} if offered else {"messages": found}
