"""Verifiable instructions in the manner of IFEval (Zhou et al. 2023, arXiv:2311.07911)."""

import json
import re
from collections.abc import Callable
from typing import Any

from post_training.core.errors import did_you_mean
from post_training.rewards import answer_texts, column, register_reward

_CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "min_words": lambda text, value: len(text.split()) >= int(value),
    "max_words": lambda text, value: len(text.split()) <= int(value),
    "min_sentences": lambda text, value: _sentences(text) >= int(value),
    "max_sentences": lambda text, value: _sentences(text) <= int(value),
    "paragraphs": lambda text, value: len([part for part in re.split(r"\n\s*\n", text) if part.strip()]) == int(value),
    "bullets": lambda text, value: len(re.findall(r"^\s*[*-] ", text, re.MULTILINE)) == int(value),
    "starts_with": lambda text, value: text.strip().startswith(str(value)),
    "ends_with": lambda text, value: text.strip().endswith(str(value)),
    "includes": lambda text, value: all(one.casefold() in text.casefold() for one in _listed(value)),
    "excludes": lambda text, value: not any(one.casefold() in text.casefold() for one in _listed(value)),
    "no_commas": lambda text, value: ("," not in text) == bool(value),
    "uppercase": lambda text, value: text.isupper() == bool(value),
    "lowercase": lambda text, value: text.islower() == bool(value),
    "json": lambda text, value: _is_json(text) == bool(value),
}


@register_reward("constraints")
def constraints(
    prompts: list[Any], completions: list[Any], *, require: dict[str, Any] | None = None, reference: str | None = None, **columns: Any
) -> list[float | None]:  # fmt: skip
    """The share of constraints that the answer meets: `require`, the same for every prompt, and the mapping in the column `reference`.

    Constraints are min_words, max_words, min_sentences, max_sentences, paragraphs, bullets, starts_with, ends_with, includes,
    excludes, no_commas, uppercase, lowercase and json, each with its value. A prompt without any gives no score.

    >>> constraints([], [[{"role": "assistant", "content": "one two"}]], require={"max_words": 2, "includes": "three"})
    [0.5]
    """
    answers = answer_texts(completions)
    own = column(columns, reference) if reference is not None else [None] * len(answers)
    found: list[float | None] = []
    for text, more in zip(answers, own, strict=True):
        wanted = {**(require or {}), **{name: value for name, value in (more or {}).items() if value is not None}}
        unknown = next((name for name in wanted if name not in _CHECKS), None)
        if unknown:
            raise ValueError(f"no constraint named {unknown!r}. {did_you_mean(unknown, _CHECKS)}")
        met = [_CHECKS[name](text, value) for name, value in wanted.items()]
        found.append(sum(met) / len(met) if met else None)
    return found


def _sentences(text: str) -> int:
    return len([part for part in re.split(r"[.!?]+(?:\s|$)", text) if part.strip()])


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _is_json(text: str) -> bool:
    try:
        json.loads(re.sub(r"^```(?:json)?\n|\n```$", "", text.strip()))
    except ValueError:
        return False
    return True
