"""A regular expression."""

import re
from typing import Any

from post_training.rewards import answer_texts, register_reward


@register_reward("format")
def format_matches(prompts: list[Any], completions: list[Any], *, pattern: str, anywhere: bool = False) -> list[float]:
    r"""1 where the regular expression `pattern` matches the complete answer (`.` matches line ends), or with `anywhere` a part of it.

    >>> format_matches([], [[{"role": "assistant", "content": "<think>so</think> 2"}]], pattern=r"<think>.*</think>.*")
    [1.0]
    """
    compiled = re.compile(pattern, re.DOTALL)
    match = compiled.search if anywhere else compiled.fullmatch
    return [float(match(text.strip()) is not None) for text in answer_texts(completions)]
