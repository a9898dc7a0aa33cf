"""Messages and tools as other APIs and datasets write them (Anthropic, Bedrock, Gemini, OpenAI's Responses, HH's transcripts) -> the form
that `message.py` reads.

Their blocks become blocks with a `type`, and the results of tools, which there are part of a turn of the user, turns of the tool.
"""

import re
from collections.abc import Iterator
from typing import Any

import orjson

from post_training.data.message import InvalidRow

# Key of a block without a type -> the type that says the same, and the names of its parts there.
_BLOCKS: dict[str, tuple[str, dict[str, str]]] = {
    "toolUse": ("tool_use", {"toolUseId": "id", "name": "name", "input": "input"}),
    "functionCall": ("tool_use", {"id": "id", "name": "name", "args": "input"}),
    "toolResult": ("tool_result", {"toolUseId": "tool_use_id", "content": "content"}),
    "functionResponse": ("tool_result", {"id": "tool_use_id", "name": "name", "response": "content"}),
}

_TRANSCRIPT = re.compile(r"\s*Human:(?s:.*)\n\s*Assistant:")
_ASKED, _SPEAKER = "Assistant:", re.compile(r"(?:\A|\n\n)\s*(Human:|Assistant:)")
_OF_ITEMS = ("type", "id", "status")
"""Keys of an item that say nothing of what was said."""


def of_items(items: list[Any]) -> list[Any]:
    """Turns of a list in which calls, their results and reasoning are items of their own, as OpenAI's Responses have it."""
    made: list[Any] = []
    thoughts: list[str] = []
    for item in items:
        kind, before = item_kind(item), made[-1] if made else None
        if kind == "reasoning":
            thoughts += _texts(item.get("content") or item.get("summary") or [])
            continue
        if kind == "function_call_output":
            made.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
            continue
        if kind == "function_call":
            if not isinstance(before, dict) or before.get("role") != "assistant":
                before = {"role": "assistant", "content": None}
                made.append(before)
            call = {"id": item.get("call_id"), "name": item.get("name"), "arguments": item.get("arguments")}
            before["tool_calls"] = [*(before.get("tool_calls") or []), call]
        else:
            made.append({key: v for key, v in item.items() if key not in _OF_ITEMS} if isinstance(item, dict) else item)
        if thoughts and isinstance(made[-1], dict) and made[-1].get("role") == "assistant":
            made[-1]["reasoning_content"] = "\n\n".join(thoughts)
            thoughts = []
    return made


def of_transcript(text: str) -> list[dict[str, str]]:
    """Turns of a prompt that is all of a transcript up to the answer, `Human: ... Assistant:`; none where it is anything else."""
    if not text[-len(_ASKED) - 4 :].rstrip().endswith(_ASKED) or not text.lstrip().startswith("Human:"):
        return []
    _, *parts = _SPEAKER.split(text.replace("\r\n", "\n"))
    if parts[-2:-1] != [_ASKED] or parts[-1].strip():
        return []
    spoken = zip(parts[:-2:2], parts[1:-2:2], strict=True)
    return [{"role": "assistant" if name == _ASKED else "user", "content": said.strip()} for name, said in spoken]


def is_transcript(text: str) -> bool:
    """Whether a text is turns of a transcript, `Human: ... Assistant: ...`."""
    return _TRANSCRIPT.match(text) is not None


def item_kind(item: Any) -> str:
    """The kind of an item that is no message; empty for a message."""
    kind = item.get("type") if isinstance(item, dict) and item.get("role") is None else None
    return kind if kind in ("function_call", "function_call_output", "reasoning") else ""


def _texts(blocks: Any) -> list[str]:
    """Texts of an item of reasoning; of one that is encrypted there are none."""
    if not isinstance(blocks, list) or not all(isinstance(b, dict) and isinstance(b.get("text"), str) for b in blocks):
        raise InvalidRow("wrong_type", "an item of reasoning has no list of texts")
    return [block["text"] for block in blocks if block["text"]]


def opened(turn: Any) -> Iterator[Any]:
    """The turns that a turn of any API is."""
    content = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(content, list):
        yield turn
        return
    blocks = [_typed(block) for block in content]
    turn = {**turn, "content": blocks}
    results = any if turn.get("role") == "user" else all
    if turn.get("role") not in ("user", "tool") or not blocks or not results(map(_is_result, blocks)):
        yield turn
        return
    for block in filter(_is_result, blocks):
        identity = {"tool_call_id": block["tool_use_id"]} if block.get("tool_use_id") is not None else {}
        named = {"name": block["name"]} if block.get("name") is not None else {}
        yield {"role": "tool", "content": _result(block.get("content")), **identity, **named}
    if said := [block for block in blocks if not _is_result(block)]:
        yield {**turn, "role": "user", "content": said}


def openai_tools(tools: list[Any]) -> Iterator[Any]:
    """Each tool, with its schema where OpenAI has it; one of OpenAI's form as it is."""
    for tool in tools:
        if not isinstance(tool, dict):
            yield tool
        elif tool.get("type") == "function" and "name" in tool and "function" not in tool:
            yield {key: value for key, value in tool.items() if key != "type"}
        elif "input_schema" in tool:
            yield {key: value for key, value in tool.items() if key != "input_schema"} | {
                "parameters": tool["input_schema"]
            }
        elif isinstance(tool.get("toolSpec"), dict):
            spec = dict(tool["toolSpec"])
            schema = spec.pop("inputSchema", None)
            yield spec | {"parameters": schema.get("json") if isinstance(schema, dict) else schema}
        elif isinstance(tool.get("functionDeclarations"), list):
            yield from tool["functionDeclarations"]
        else:
            yield tool


def _typed(block: Any) -> Any:
    """A block with its type; one that has a type, or is of no known form, as it is."""
    if not isinstance(block, dict) or block.get("type") is not None:
        return block
    block = {key: value for key, value in block.items() if value is not None}
    if isinstance(block.get("text"), str) and set(block) <= {"text", "thought", "type"}:
        return {"type": "thinking" if block.get("thought") is True else "text", "text": block["text"]}
    if set(block) == {"reasoningContent"} and isinstance(block["reasoningContent"], dict):
        found = block["reasoningContent"].get("reasoningText")
        return {"type": "thinking", "thinking": found.get("text") if isinstance(found, dict) else found}
    for key, (kind, names) in _BLOCKS.items():
        if set(block) == {key} and isinstance(block[key], dict):
            return {"type": kind, **{names[name]: value for name, value in block[key].items() if name in names}}
    return block


def _is_result(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "tool_result"


def _result(content: Any) -> Any:
    """A tool's result: text as it is, blocks with types, and an object as its JSON text."""
    if isinstance(content, list):
        return [
            {"type": "text", "text": orjson.dumps(block["json"]).decode()}
            if isinstance(block, dict) and set(block) == {"json"}
            else _typed(block)
            for block in content
        ]
    return orjson.dumps(content).decode() if isinstance(content, dict) else content
