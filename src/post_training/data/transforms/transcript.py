"""A whole conversation in one text, with a mark where each turn begins."""

import re
from typing import Any

from post_training.data.transforms import register_transform


@register_transform("transcript", gives="messages", choices={"preface": ("reject", "system", "drop")})
def transcript(
    row: dict[str, Any],
    column: str = "text",
    user: str | list[str] = "Human:",
    assistant: str | list[str] = "Assistant:",
    separator: str = "\n\n",
    strip: str | list[str] | None = None,
    preface: str = "reject",
    system: str | None = None,
) -> dict[str, Any]:
    """Turns that begin with a mark of `user` or `assistant`, at the beginning of the text or after `separator`.

    White space around a turn is not part of it, nor are the texts in `strip`, such as `</s>`; a last turn without text is left out.
    Text before the first mark is a reason to `reject` the row, or the `system` prompt, or dropped: `preface` is `reject`, `system` or
    `drop`. `system` names a column with a system prompt.

    >>> transcript({"text": "### Human: hi### Assistant: hello"}, separator="###")
    {'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]}
    """
    text = row[column]
    if not isinstance(text, str):
        raise KeyError(column) if text is None else TypeError(f"{column} is {type(text).__name__}, expected text")
    marks = {mark: role for role, given in (("user", user), ("assistant", assistant)) for mark in _listed(given)}
    if "" in marks or set(_listed(user)) & set(_listed(assistant)):
        raise ValueError("unknown_choice: user and assistant need marks of their own")
    known = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
    before, *parts = re.split(rf"(?:\A|{re.escape(separator)})\s*({known})", text.replace("\r\n", "\n"))
    before = _bare(before, _listed(strip))
    if not parts or (before and preface == "reject"):
        raise ValueError(f"not_a_transcript: {column} does not begin with one of {', '.join(marks)}")
    said = [
        {"role": marks[m], "content": _bare(t, _listed(strip))} for m, t in zip(parts[::2], parts[1::2], strict=True)
    ]
    said = said if said[-1]["content"] else said[:-1]
    prompts = [row.get(system)] if system is not None else []
    prompts += [before] if preface == "system" else []
    system_turns = [{"role": "system", "content": prompt} for prompt in prompts if prompt]
    return {"messages": [*system_turns, *said]}


def _listed(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else given or []


def _bare(text: str, ends: list[str]) -> str:
    """A text without white space and the given texts at its ends."""
    while True:
        shorter = text.strip()
        for end in filter(None, ends):
            shorter = shorter.removeprefix(end).removesuffix(end)
        if shorter == text:
            return text
        text = shorter
