"""Two columns: what is asked and what is answered."""

from typing import Any

from post_training.data.transforms import register_transform


@register_transform("question_answer")
def question_answer(
    row: dict[str, Any], question: str = "question", answer: str = "answer", system: str | None = None
) -> dict[str, Any]:
    """One user turn and one assistant turn; `system` is a fixed system prompt for every row.

    >>> question_answer({"question": "1+1?", "answer": "2"})["messages"][1]
    {'role': 'assistant', 'content': '2'}
    """
    messages = [{"role": "user", "content": row[question]}, {"role": "assistant", "content": row[answer]}]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}
