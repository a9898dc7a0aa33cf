"""Completions with binary labels."""

from typing import Any

from post_training.data.transforms import register_transform
from post_training.data.transforms._parts import messages


@register_transform("unpaired_preference", gives="unpaired")
def unpaired_preference(
    row: dict[str, Any],
    prompt: str = "prompt",
    completion: str = "completion",
    label: str = "label",
    tools: str = "tools",
) -> dict[str, Any]:
    """Prompt and answer as text, messages or ShareGPT turns, and a label: true or 1 = desirable, false or 0 = not.

    >>> unpaired_preference({"prompt": "1+1?", "completion": "2", "label": 1})["label"]
    True
    """
    verdict = row[label]
    if verdict not in (0, 1):  # true and false are 1 and 0 here
        raise TypeError(f"{label} is {verdict!r}, expected true, false, 1 or 0")
    made = {"prompt": messages(row[prompt], "user"), "completion": messages(row[completion], "assistant")}
    return {**made, "label": bool(verdict), **({"tools": row[tools]} if row.get(tools) else {})}
