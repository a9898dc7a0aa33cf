"""Completions with binary labels."""

from typing import Any

from post_training.data.transforms import register_transform
from post_training.data.transforms._values import flag, spoken


@register_transform("unpaired_preference", gives="unpaired")
def unpaired_preference(
    row: dict[str, Any],
    prompt: str = "prompt",
    completion: str = "completion",
    label: str = "label",
    tools: str = "tools",
) -> dict[str, Any]:
    """Prompt and answer as text, messages or ShareGPT turns, and a label: true or 1 = desirable, false or 0 = not.

    An answer that is a whole conversation is cut at its last turn where there is no prompt, and at the prompt where it repeats that.

    >>> unpaired_preference({"prompt": "1+1?", "completion": "2", "label": 1})["label"]
    True
    """
    verdict = flag(row[label], label)
    if verdict is None:
        raise KeyError(label)
    said = spoken(row[completion], "assistant")
    if row.get(prompt) is None and len(said) > 1:
        asked, said = said[:-1], said[-1:]
    else:
        asked = spoken(row[prompt], "user")
        said = said[len(asked) :] if said[: len(asked)] == asked else said
    return {"prompt": asked, "completion": said, "label": verdict, **({"tools": row[tools]} if row.get(tools) else {})}
