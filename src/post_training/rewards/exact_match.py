"""The answer is the reference."""

from typing import Any

from post_training.rewards import answer_texts, column, register_reward


@register_reward("exact_match")
def exact_match(
    prompts: list[Any], completions: list[Any], *, reference: str = "answer", ignore_case: bool = False, **columns: Any
) -> list[float | None]:
    """1 where the answer equals the column `reference`, white space at both ends aside; 0 elsewhere.

    >>> exact_match([], [[{"role": "assistant", "content": " 2"}]], answer=["2"])
    [1.0]
    """

    def plain(value: Any) -> str:
        text = str(value).strip()
        return text.casefold() if ignore_case else text

    wanted = column(columns, reference)
    return [float(plain(text) == plain(one)) for text, one in zip(answer_texts(completions), wanted, strict=True)]
