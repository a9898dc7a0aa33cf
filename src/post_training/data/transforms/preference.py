"""Two answers to one prompt, one of them better: as a pair, or each for itself."""

from typing import Any

from post_training.data.transforms import register_transform


@register_transform("preference")
def preference(
    row: dict[str, Any], prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected"
) -> dict[str, Any]:
    """Prompt and answers as text or as messages.

    Answers that are whole conversations are cut at what they share, which becomes the prompt when
    there is none or when it repeats it.

    >>> preference({"prompt": "1+1?", "chosen": "2", "rejected": "3"})["chosen"]
    [{'role': 'assistant', 'content': '2'}]
    """
    return _pair(row, prompt, chosen, rejected)


@register_transform("unpair_preference")
def unpair_preference(
    row: dict[str, Any], prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected"
) -> list[dict[str, Any]]:
    """The same rows for a method that judges answers one by one: the chosen one desirable, the rejected one not.

    >>> [row["label"] for row in unpair_preference({"prompt": "1+1?", "chosen": "2", "rejected": "3"})]
    [True, False]
    """
    pair = _pair(row, prompt, chosen, rejected)
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
    ]


def _pair(row: dict[str, Any], prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    better, worse = _as_messages(row[chosen], "assistant"), _as_messages(row[rejected], "assistant")
    asked = _as_messages(row[prompt], "user") if row.get(prompt) is not None else []
    shared = 0
    while shared < min(len(better), len(worse)) - 1 and better[shared] == worse[shared]:
        shared += 1
    if shared and (not asked or better[: len(asked)] == asked):
        return {"prompt": better[:shared], "chosen": better[shared:], "rejected": worse[shared:]}
    if not asked:
        raise ValueError("no_shared_prefix: the answers share no first turn and there is no prompt")
    return {"prompt": asked, "chosen": better, "rejected": worse}


def _as_messages(value: Any, role: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list):
        return value
    raise TypeError(f"found {type(value).__name__}, expected text or a list of messages")
