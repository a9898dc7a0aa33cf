"""Answers that are judged one by one."""

from typing import Any

from post_training.data.transforms import register_transform


@register_transform("unpaired_preference")
def unpaired_preference(
    row: dict[str, Any], prompt: str = "prompt", completion: str = "completion", label: str = "label"
) -> dict[str, Any]:
    """Prompt and answer as text or as messages, and a label: true or 1 = desirable, false or 0 = not.

    >>> unpaired_preference({"prompt": "1+1?", "completion": "2", "label": 1})["label"]
    True
    """
    verdict = row[label]
    if verdict not in (0, 1):  # true and false are 1 and 0 here
        raise TypeError(f"{label} is {verdict!r}, expected true, false, 1 or 0")
    return {
        "prompt": _as_messages(row[prompt], "user"),
        "completion": _as_messages(row[completion], "assistant"),
        "label": bool(verdict),
    }


def _as_messages(value: Any, role: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list):
        return value
    raise TypeError(f"found {type(value).__name__}, expected text or a list of messages")
