"""Chat templates, compiled as Transformers compiles them, with the characters that are trained on.

The sandbox and its filters are those of `apply_chat_template`, so both render the same text. There is
no clock: a template that asks for the date would render differently tomorrow.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from post_training.errors import DataError

# Noncharacters: Unicode promises that they never stand for text, so they can mark spans in it.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REASONING = ("reasoning_content", "thinking", "reasoning")
Span = tuple[int, int]


class _Generation(Extension):
    """`{% generation %}`: marks in the text what the assistant says, and counts the marks that it sets."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's interface)
    marked = 0

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in Transformers: what the body sets stays in the body.
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        self.marked += 1
        return f"{_OPEN}{caller()}{_CLOSE}"


class ChatTemplate:
    """One template with the special tokens of one tokenizer."""

    def __init__(self, text: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        self._generation: Any = environment.extensions[_Generation.identifier]
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise DataError(f"chat template: line {getattr(error, 'lineno', '?')}: {error}") from None
        self._special_tokens = special_tokens

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> tuple[str, list[Span]]:
        """The text of a conversation and the [start, end) characters that are trained on.

        Raises ValueError, `reason: detail`, when the template cannot render the conversation or its text holds a
        reserved character.
        """
        self._generation.marked = 0
        try:
            marked = self._template.render(
                messages=[_as_transformers_passes_it(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # a template is a program: adding text to nothing is a TypeError, and so on
            raise ValueError(f"template_error: {' '.join(str(error).split())}") from None
        # More marks than were set came with the text, which would then choose what is trained on.
        if not marked.count(_OPEN) == marked.count(_CLOSE) == self._generation.marked:
            raise ValueError("reserved_character: the text holds U+FDD0 or U+FDD1")
        if not self._generation.marked:
            return marked, []
        parts = marked.replace(_CLOSE, _OPEN).split(_OPEN)
        spans, position = [], 0
        for index, part in enumerate(parts):
            if index % 2:
                spans.append((position, position + len(part)))
            position += len(part)
        return "".join(parts), spans


def special_tokens(folder: Path) -> dict[str, str]:
    """The tokens that a model folder's tokenizer hands to its template (`eos_token`, ...)."""
    config = _json_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # Transformers reads the older file only then
        config |= _json_object(folder / "special_tokens_map.json")
    named = {key: config.get(key) for key in SPECIAL_TOKENS}
    texts = {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
    return {key: value for key, value in texts.items() if isinstance(value, str)}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); save the model's tokenizer again") from None


def _as_transformers_passes_it(message: dict[str, Any]) -> dict[str, Any]:
    """Without null values, and with reasoning under the names that templates read."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> Callable[..., None]:
    raise jinja2.TemplateError(message)
