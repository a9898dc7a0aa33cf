"""What an answer says, by fields: content, reasoning and tool calls, as the chat template writes them.

The template is a program, so its spelling is found by rendering an answer of known parts: the text before and after the
reasoning, and around a call. The expected answer and the generated one are then read in the same way, so that equal texts
are always equal; calls are equal as JSON, whatever the order of their keys and the blanks between them.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Render = Callable[[list[dict[str, Any]]], str | None]
_THOUGHT, _SAID, _NAME, _VALUE = "thought7probe", "said7probe", "name7probe", "value7probe"


@dataclass
class Answer:
    """An answer by fields; without one where it has none."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[Any] = field(default_factory=list)

    def compare(self, expected: "Answer") -> dict[str, bool]:
        """Whether each field that the expected answer or this one has is right."""
        names = [
            name for name in ("content", "reasoning", "tool_calls") if getattr(expected, name) or getattr(self, name)
        ]
        return {name: getattr(self, name) == getattr(expected, name) for name in names}


class AnswerReader:
    """Reads the text of an answer by the spelling of one template."""

    def __init__(self, render: Render) -> None:
        """`render` gives the text that a template writes for the last of some turns; None where it cannot."""
        user = {"role": "user", "content": "?"}
        thinking = render([user, {"role": "assistant", "content": _SAID, "reasoning_content": _THOUGHT}]) or ""
        self._reasoning: tuple[str, str] | None = None
        if _THOUGHT in thinking and _SAID in thinking.partition(_THOUGHT)[2]:
            before, _, rest = thinking.partition(_THOUGHT)
            self._reasoning = before.strip(), rest.partition(_SAID)[0].strip()
        call = {"type": "function", "function": {"name": _NAME, "arguments": {"x": _VALUE}}}
        calling = render([user, {"role": "assistant", "content": "", "tool_calls": [call]}]) or ""
        values = [(start, end) for start, end, value in _json_values(calling) if _NAME in json.dumps(value)]
        self._around = [
            part.strip() for start, end in values[:1] for part in (calling[:start], calling[end:]) if part.strip()
        ]

    def read(self, text: str) -> Answer:
        """The fields of an answer's text, without its stop token."""
        found = Answer()
        if self._reasoning is not None and self._reasoning[1] and self._reasoning[1] in text:
            before, _, text = text.partition(self._reasoning[1])
            found.reasoning = before.removeprefix(self._reasoning[0]).strip().removeprefix(self._reasoning[0]).strip()
        for start, end, value in reversed(_json_values(text)):
            if _is_call(value):
                found.tool_calls[:0] = value if isinstance(value, list) else [value]
                text = f"{text[:start]}\n{text[end:]}"
        if found.tool_calls:
            for part in self._around:
                text = text.replace(part, "")
        found.content = text.strip()
        return found


def compare_answers(
    rows: list[dict[str, Any]], samples: list[dict[str, Any]], render: Callable[[list[dict[str, Any]], Any], str | None]
) -> dict[str, float]:
    """Set `expected`, `correct` and, where there is more than content, `fields` of each sample; returns the shares by field.

    Args:
        rows: conversations that end with the expected answer, `messages` and perhaps `tools`.
        samples: of each the generated answer: `text`, which is taken out, with its control tokens, and `stopped`.
        render: turns and tools -> what the template writes for the last of them; None where it cannot.
    """
    reader, found = AnswerReader(lambda messages: render(messages, None)), []
    for row, sample in zip(rows, samples, strict=True):
        content, written = row["messages"][-1]["content"], render(row["messages"], row.get("tools"))
        wanted = reader.read(content if written is None else written)
        fields = reader.read(sample.pop("text")).compare(wanted)
        # An answer that was cut off is wrong, even if it began like the expected one.
        sample["correct"] = sample["stopped"] and all(fields.values())
        sample["expected"] = content.strip()
        if set(fields) - {"content"}:
            sample["expected"], sample["fields"] = (written or content).strip(), fields
            found.append(fields)
    measured = {
        name: [fields[name] for fields in found if name in fields] for name in ("content", "reasoning", "tool_calls")
    }
    return {f"{name}_match": sum(right) / len(right) for name, right in measured.items() if right}


def _json_values(text: str) -> list[tuple[int, int, Any]]:
    """(start, end, value) of the outermost JSON objects and arrays in a text."""
    found, position, decoder = [], 0, json.JSONDecoder()
    for match in re.finditer(r"[\[{]", text):
        if match.start() >= position:
            try:
                value, position = decoder.raw_decode(text, match.start())
            except (ValueError, RecursionError):
                continue
            found.append((match.start(), position, value))
    return found


def _is_call(value: Any) -> bool:
    """`{"name": ..., "arguments": {...}}` and the like, one or several."""
    if isinstance(value, list):
        return bool(value) and all(_is_call(one) for one in value)
    if not isinstance(value, dict):
        return False
    function = value.get("function", value)
    named = isinstance(function, dict) and isinstance(function.get("name"), str)
    return named and any(key in function for key in ("arguments", "parameters"))
