"""Any columns: what is asked and what is answered."""

from typing import Any

from post_training.data.transforms import register_transform
from post_training.data.transforms._parts import text


@register_transform("question_answer", gives="messages")
def question_answer(
    row: dict[str, Any],
    question: str | list[str] = "question",
    answer: str | list[str] = "answer",
    system: str | None = None,
) -> dict[str, Any]:
    """One user turn and one assistant turn; `system` is a fixed system prompt for every row.

    `question` and `answer` are a column, a list of columns (joined by blank lines), or a template with columns in
    braces; a list of texts in a column becomes lines.

    >>> question_answer({"question": "1+1?", "answer": "2"})["messages"][1]
    {'role': 'assistant', 'content': '2'}
    >>> question_answer({"a": 1, "b": 2, "sum": "3"}, "What is {a}+{b}?", "sum")["messages"][0]["content"]
    'What is 1+2?'
    """
    made = [{"role": "user", "content": text(row, question)}, {"role": "assistant", "content": text(row, answer)}]
    return {"messages": [{"role": "system", "content": system}, *made] if system else made}
