"""Pairs with a number that says by how much the chosen answer is better."""

from typing import Any

from post_training.data.transforms import register_transform
from post_training.data.transforms._values import number
from post_training.data.transforms.preference import preference


@register_transform("preference_margin", gives="preference")
def preference_margin(
    row: dict[str, Any],
    margin: str | list[str] = "margin",
    prompt: str | list[str] = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    system: str | None = None,
    tools: str = "tools",
    scale: float = 1.0,
) -> dict[str, Any]:
    """The rows of `preference`, each with a margin, by which reward models separate the answers.

    `margin` is a column, or two of scores, the chosen answer's and the rejected one's, whose difference it is; times `scale`.

    >>> row = {"prompt": "1+1?", "chosen": "2", "rejected": "3", "score_chosen": 9, "score_rejected": 6.5}
    >>> preference_margin(row, margin=["score_chosen", "score_rejected"], scale=0.5)["margin"]
    1.25
    """
    names = margin if isinstance(margin, list) else [margin]
    if len(names) not in (1, 2):
        raise ValueError(f"unknown_choice: margin={margin}, expected one column or two")
    found = [number(row[name], f"margin ({name})") for name in names]
    values = [value for value in found if value is not None]
    if len(values) < len(names):
        raise KeyError(names[found.index(None)])
    return {**preference(row, prompt, chosen, rejected, system, tools), "margin": scale * (values[0] - sum(values[1:]))}
