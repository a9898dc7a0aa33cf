"""`evaluation.prompts`: fixed prompts without reference answers."""

import json
from pathlib import Path
from typing import Any

from post_training.core.errors import DataError, UserError
from post_training.core.fingerprint import file_sha256
from post_training.core.paths import unreadable

PROMPTS = "prompts"
"""Their name among the datasets of `samples.jsonl`."""
_ROLES = ("system", "user", "assistant")
_EXPECTED = (
    'expected {"prompt": "text"} or {"messages": [{"role": ..., "content": ...}, ...]}, with an "id" if you like'
)


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The prompts of a JSON Lines file as `messages`, with their `id` where they have one; empty lines are skipped.

    Raises DataError with the row, counted from 1.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"evaluation.prompts: {unreadable(str(path), error)}; give a JSON Lines file") from None
    found = [_prompt(line, f"{path}: row {row:,}") for row, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"evaluation.prompts: {path}: has no prompt; {_EXPECTED}, one a line")
    return found


def planned_prompts(path: Path, sha256: str) -> list[dict[str, Any]]:
    """The prompts. Raises UserError when they are not those that the run was planned with."""
    if not path.is_file() or file_sha256(path) != sha256:
        raise UserError(f"{path}: changed since the run was planned; start again to use it as it is now")
    return read_prompts(path)


def _prompt(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON ({error}); {_EXPECTED}") from None
    if not isinstance(row, dict) or not ({"prompt"} <= row.keys() or {"messages"} <= row.keys()):
        raise DataError(f"{where}: found {line.strip()[:80]}; {_EXPECTED}")
    unknown = sorted(row.keys() - {"id", "prompt", "messages"})
    if unknown or {"prompt", "messages"} <= row.keys():
        raise DataError(f"{where}: found {', '.join(unknown) or 'both prompt and messages'}; {_EXPECTED}")
    messages = row.get("messages", [{"role": "user", "content": row.get("prompt")}])
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise DataError(f"{where}: a message without text, or of another role than {', '.join(_ROLES)}; {_EXPECTED}")
    if (last := messages[-1]["role"]) != "user":
        raise DataError(f"{where}: the last turn is the {last}'s, so there is nothing to answer; end with the user's")
    return {**({"id": row["id"]} if "id" in row else {}), "messages": messages}


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and message["role"] in _ROLES
        and isinstance(message["content"], str)
        and bool(message["content"].strip())
    )
