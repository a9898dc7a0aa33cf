"""Rows that are conversations already."""

from typing import Any

from post_training.data.transforms import register_transform


@register_transform("messages")
def messages(row: dict[str, Any], column: str = "messages", tools: str = "tools") -> dict[str, Any]:
    """A column of `{role, content}` messages, and the tools that they may call when there are any.

    >>> messages({"messages": [{"role": "user", "content": "hi"}], "source": "x"})
    {'messages': [{'role': 'user', 'content': 'hi'}]}
    """
    found = {"messages": row[column]}
    return {**found, "tools": row[tools]} if row.get(tools) else found
