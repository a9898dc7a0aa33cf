"""A language model that rates answers, or compares them with a reference, behind OpenAI's chat API."""

import re
from typing import Any

from post_training.core.errors import DataError
from post_training.models.chat_api import ChatApi
from post_training.rewards import answer_texts, column, register_reward

_RATING = (
    "Rate the answer to the request below by how helpful, correct and harmless it is.\n\n[Request]\n{prompt}\n\n[Answer]\n{answer}\n\n"
    "Give your reasons in a few sentences. Then end with the rating, a number from {lowest} to {highest}, as [[number]]."
)
_COMPARISON = (
    "Which of two answers to the request below is better: more helpful, correct and harmless?\n\n[Request]\n{prompt}\n\n"
    "[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"
    "Give your reasons in a few sentences. Then end with [[A]], [[B]], or [[C]] where neither is better."
)
_POINTS = {"A": 1.0, "B": 0.0, "C": 0.5}


@register_reward("judge")
def judge(
    prompts: list[Any], completions: list[Any], *, url: str, model_name: str, template: str | None = None,
    reference: str | None = None, lowest: int = 1, highest: int = 10, max_tokens: int = 1024, concurrency: int = 16,
    api_key_variable: str = "OPENAI_API_KEY", request_seconds: float = 300.0, max_retries: int = 5, **columns: Any,
) -> list[Any]:  # fmt: skip
    """A rating from 0 to 1 by the model `model_name` of a server with OpenAI's chat API at `url`; a reply without one gives no score.

    The reply ends with `[[number]]`. With `reference` the answer is compared with that column instead, asked twice with
    the places swapped: 1 where it wins both times, 0.5 for ties. `template` holds `{prompt}` and `{answer}`, or `{prompt}`,
    `{first}` and `{second}`. The key comes from the environment variable `api_key_variable`."""
    if not lowest < highest:
        raise DataError(f"judge: lowest={lowest} and highest={highest}, expected lowest below highest")
    places = ["{answer}"] if reference is None else ["{first}", "{second}"]
    if template is not None and (lacking := [place for place in places if place not in template]):
        raise DataError(
            f"judge: the template lacks {' and '.join(lacking)}, so the judge would not see what it is to rate"
        )
    answers = answer_texts(completions)
    others = [None] * len(answers) if reference is None else column(columns, reference)
    texts = []
    for prompt, answer, other in zip(prompts, answers, others, strict=True):
        asked = (
            "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
            if len(prompt) > 1
            else prompt[0]["content"]
        )
        if reference is None:
            texts.append(
                _filled(template or _RATING, prompt=asked, answer=answer, lowest=str(lowest), highest=str(highest))
            )
        else:
            pairs = ((answer, str(other)), (str(other), answer))
            texts += [
                _filled(template or _COMPARISON, prompt=asked, first=first, second=second) for first, second in pairs
            ]
    settings = {"concurrency": concurrency, "request_seconds": request_seconds, "max_retries": max_retries}
    api = ChatApi(lambda: url, settings | {"api_key_variable": api_key_variable})
    body = {"model": model_name, "max_tokens": max_tokens, "temperature": 0}
    replies = api.ask_all([{**body, "messages": [{"role": "user", "content": text}]} for text in texts])
    if reference is None:
        return [_rating(reply.text, lowest, highest) for reply in replies]
    return [_won(one.text, two.text) for one, two in zip(replies[::2], replies[1::2], strict=True)]


def _filled(template: str, **values: str) -> str:
    """The template with its places filled in one pass: an answer that spells a place stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), template)


def _rating(reply: str, lowest: int, highest: int) -> float | ValueError:
    found = re.search(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]\W*$", reply)
    if found is None or not lowest <= float(found[1]) <= highest:
        return ValueError("the reply ends with no rating in range")
    return (float(found[1]) - lowest) / (highest - lowest)


def _won(first: str, swapped: str) -> float | ValueError:
    verdicts = [re.search(r"\[\[([ABC])\]\]\W*$", reply) for reply in (first, swapped)]
    if verdicts[0] is None or verdicts[1] is None:
        return ValueError("the reply ends with no verdict")
    return (_POINTS[verdicts[0][1]] + 1 - _POINTS[verdicts[1][1]]) / 2
