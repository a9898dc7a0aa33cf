"""Mathematical answers, compared by what they mean (math-verify)."""

from typing import Any

from post_training.rewards import answer_texts, column, register_reward


@register_reward("math_answer")
def math_answer(
    prompts: list[Any], completions: list[Any], *, reference: str = "answer", **columns: Any
) -> list[float | None]:
    r"""1 where the last expression or `\boxed{}` of the answer means the same as the column `reference`; 0 elsewhere.

    A reference in which no expression is found gives no score.

    >>> math_answer([], [[{"role": "assistant", "content": "So it is \\boxed{1/2}."}]], answer=["0.5"])
    [1.0]
    """
    from math_verify import parse, verify

    found: list[float | None] = []
    for text, wanted in zip(answer_texts(completions), column(columns, reference), strict=True):
        gold = parse(_as_math(str(wanted)))
        given = parse(text[-_LONGEST:])
        found.append(float(verify(gold, given)) if gold else None)
    return found


_LONGEST = 2000


def _as_math(text: str) -> str:
    r"""A bare answer, `\frac{1}{2}`, as LaTeX that is found."""
    return text if "$" in text or "\\boxed" in text else f"${text}$"
