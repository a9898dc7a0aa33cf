"""How long an answer is."""

from typing import Any

from post_training.rewards import answer_texts, register_reward


@register_reward("length")
def length(
    prompts: list[Any], completions: list[Any], *, unit: str = "words", at_least: int = 0, at_most: int | None = None
) -> list[float]:
    """1 where an answer has from `at_least` to `at_most` `words` or `characters`; less by the share that is missing or too many.

    >>> length([], [[{"role": "assistant", "content": "one two three"}]], at_most=2)
    [0.5]
    """
    if unit not in ("words", "characters"):
        raise ValueError(f"unit: found {unit!r}, expected words or characters")
    found = []
    for text in answer_texts(completions):
        size = len(text.split()) if unit == "words" else len(text)
        if size < at_least:
            found.append(size / at_least)
        elif at_most is not None and size > at_most:
            found.append(max(0.0, 1 - (size - at_most) / max(at_most, 1)))
        else:
            found.append(1.0)
    return found
