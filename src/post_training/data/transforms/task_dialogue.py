"""Dialogues of a user with an agent: Taskmaster, MultiWOZ, SGD and their kind."""

from typing import Any

from post_training.data.transforms import register_transform
from post_training.data.transforms._parts import ROLES

_SPEAKERS = {
    **ROLES, "customer": "user", "client": "user", "system": "assistant", "agent": "assistant", "wizard": "assistant",
}  # fmt: skip


@register_transform("task_dialogue", gives="messages")
def task_dialogue(
    row: dict[str, Any],
    turns: str = "utterances",
    speaker: str | None = "speaker",
    text: str | list[str] = "text",
    roles: dict[str, str] | None = None,
    system: str | None = None,
    opening: str | None = None,
) -> dict[str, Any]:
    """Utterances with a speaker and a text; those of one speaker that follow each other become one turn, a line each.

    `turns` is the column, `speaker` and `text` are keys of an utterance; with `speaker: null` the speakers alternate, the
    user first, and an utterance may be text alone; with a list of keys for `text`, such as `[input, output]`, an utterance holds
    a turn below each. Speakers are user or customer, and assistant, agent, wizard or system, in any case; `roles` adds others.
    `system` is a fixed system prompt, `opening` a user turn for dialogues that the agent begins.

    >>> task_dialogue({"utterances": [{"speaker": "USER", "text": "hi"}, {"speaker": "SYSTEM", "text": "yes?"}]})
    {'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'yes?'}]}
    """
    known = _SPEAKERS | {name.lower(): role for name, role in (roles or {}).items()}
    if not isinstance(row[turns], list):
        raise KeyError(turns) if row[turns] is None else TypeError(f"{turns} is {type(row[turns]).__name__}")
    made: list[dict[str, Any]] = []
    for index, (utterance, key) in enumerate(_each(row[turns], text)):
        said = utterance if speaker is None and isinstance(utterance, str) else utterance[key]
        if speaker is None:
            role = ("user", "assistant")[index % 2]
        else:
            role = known.get(str(utterance[speaker]).lower(), str(utterance[speaker]))
        if not isinstance(said, str):
            raise TypeError(f"{turns}[{index}].{key} is {type(said).__name__}, expected text")
        if made and made[-1]["role"] == role:
            made[-1]["content"] += f"\n{said}"
        else:
            made.append({"role": role, "content": said})
    if opening is not None and made and made[0]["role"] == "assistant":
        made = [{"role": "user", "content": opening}, *made]
    return {"messages": [{"role": "system", "content": system}, *made] if system else made}


def _each(utterances: list[Any], keys: str | list[str]) -> list[tuple[Any, str]]:
    """Each utterance with each key of its text."""
    several = [keys] if isinstance(keys, str) else keys
    return [(said, key) for said in utterances for key in (several if isinstance(said, dict) else several[:1])]
