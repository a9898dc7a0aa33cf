"""Any columns: what is asked and what is answered."""

from typing import Any

from post_training.data.transforms import register_transform
from post_training.data.transforms._parts import read_json, text
from post_training.data.transforms._values import spoken


@register_transform("question_answer", gives="messages")
def question_answer(
    row: dict[str, Any],
    question: str | list[str] = "question",
    answer: str | list[str] = "answer",
    system: str | None = None,
    calls: str | None = None,
    tools: str | None = None,
) -> dict[str, Any]:
    """One user turn and one assistant turn; `system` is a fixed system prompt for every row.

    `question` and `answer` are a column, a list of columns (joined by blank lines), or a template with columns in
    braces; a list of texts in a column becomes lines, and a list of messages stays one. `calls` names a column of tool calls,
    which then are the answer, and `tools` one of the tools.

    >>> question_answer({"question": "1+1?", "answer": "2"})["messages"][1]
    {'role': 'assistant', 'content': '2'}
    >>> question_answer({"a": 1, "b": 2, "sum": "3"}, "What is {a}+{b}?", "sum")["messages"][0]["content"]
    'What is 1+2?'
    """
    if calls is None:
        said = _messages(row, answer, "assistant")
    else:
        found = read_json(row[calls], calls, "bad_tool_call")
        said = [{"role": "assistant", "content": "", "tool_calls": found if isinstance(found, list) else [found]}]
    made = [*_messages(row, question, "user"), *said]
    offered = {"tools": row[tools]} if tools is not None and row.get(tools) else {}
    return {"messages": [{"role": "system", "content": system}, *made] if system else made, **offered}


def _messages(row: dict[str, Any], columns: str | list[str], speaker: str) -> list[Any]:
    """Text of the speaker, or the messages that one column holds."""
    if isinstance(columns, str):
        found = row.get(columns)
        if isinstance(found, list) and any(isinstance(one, dict) for one in found):
            return spoken(found, speaker)
    return [{"role": speaker, "content": text(row, columns)}]
