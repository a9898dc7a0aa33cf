"""ShareGPT: a list of turns with `from` and `value`."""

from typing import Any

from post_training.data.transforms import register_transform
from post_training.data.transforms._parts import ROLES, read_json, turns


@register_transform("sharegpt", gives="messages")
def sharegpt(
    row: dict[str, Any],
    column: str = "conversations",
    role: str = "from",
    content: str = "value",
    roles: dict[str, str] | None = None,
    system: str = "system",
    tools: str = "tools",
) -> dict[str, Any]:
    """Turns of human and gpt (and their other names) with system prompts, function calls, observations and tools.

    A `function_call` turn holds one call or several as JSON, `{"name", "arguments"}`, and becomes the assistant's tool
    call; an `observation` becomes the tool's answer. `system` and `tools` name columns that a row need not have;
    `roles` adds names of roles to the known ones.

    >>> sharegpt({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]})
    {'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]}
    """
    spoken = row[column]
    if spoken is None:
        raise KeyError(column)
    found = turns(spoken, role, content, {**ROLES, **(roles or {})})
    made = [_call(turn) if isinstance(turn, dict) and turn["role"] == "function_call" else turn for turn in found]
    if row.get(system):
        made = [{"role": "system", "content": row[system]}, *made]
    return {"messages": made, "tools": row[tools]} if row.get(tools) else {"messages": made}


def _call(turn: dict[str, Any]) -> dict[str, Any]:
    calls = read_json(turn["content"], "function_call", "bad_tool_call")
    return {"role": "assistant", "content": "", "tool_calls": calls if isinstance(calls, list) else [calls]}
