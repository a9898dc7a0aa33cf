"""Texts that an answer holds, or must not hold."""

from typing import Any

from post_training.rewards import answer_texts, register_reward


@register_reward("contains")
def contains(
    prompts: list[Any], completions: list[Any], *, texts: list[Any], absent: bool = False, ignore_case: bool = True
) -> list[float]:
    """The share of `texts` that the answer holds, or with `absent` that it does not; an entry may be a list, of which one is enough.

    >>> contains([], [[{"role": "assistant", "content": "Hello dear"}]], texts=[["hello", "hi"], "bye"])
    [0.5]
    """

    def plain(text: str) -> str:
        return text.casefold() if ignore_case else text

    groups = [[plain(str(one)) for one in (group if isinstance(group, list) else [group])] for group in texts]
    if not groups:
        raise ValueError("texts: an empty list, expected texts")
    answers = [plain(text) for text in answer_texts(completions)]
    return [sum(any(one in text for one in group) != absent for group in groups) / len(groups) for text in answers]
