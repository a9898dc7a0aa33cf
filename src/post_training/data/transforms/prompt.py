"""Prompts without an answer to train on."""

from typing import Any

from post_training.data.transforms import register_transform
from post_training.data.transforms._parts import text
from post_training.data.transforms._values import spoken


@register_transform("prompt", gives="prompts")
def prompt(
    row: dict[str, Any], prompt: str | list[str] = "prompt", system: str | None = None, tools: str = "tools"
) -> dict[str, Any]:
    """A prompt for `prompts`, as text or messages, and every other column of the row, which rewards may read.

    `prompt` may be several columns of text or a template, as in `question_answer`; without such a column that of
    `messages` is asked, up to the last user turn. `system` is a fixed system prompt for every row.

    >>> prompt({"prompt": "1+1?", "answer": "2"})
    {'prompt': [{'role': 'user', 'content': '1+1?'}], 'answer': '2'}
    """
    if isinstance(prompt, list) or (prompt not in row and "{" in prompt):
        asked, used = spoken(text(row, prompt), "user"), []
    else:
        used = [prompt if prompt in row or "messages" not in row else "messages"]
        if row[used[0]] is None:
            raise KeyError(used[0])
        asked = spoken(row[used[0]], "user")
    if system is not None:
        asked = [{"role": "system", "content": system}, *asked]
    rest = {name: value for name, value in row.items() if name not in (*used, "prompt", tools) and value is not None}
    return {"prompt": asked, **rest, **({"tools": row[tools]} if row.get(tools) else {})}
