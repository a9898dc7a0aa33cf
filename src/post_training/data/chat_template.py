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
from jinja2.sandbox import ImmutableSandboxedEnvironment

from post_training.errors import DataError

# Noncharacters: Unicode promises that they never stand for text, so they can mark spans in it.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
Span = tuple[int, int]


class _Generation(Extension):
    """`{% generation %}`: marks in the text what the assistant says."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def mark(text: str) -> nodes.Node:
            return nodes.Output([nodes.TemplateData(text)], lineno=line)

        return [mark(_OPEN), *body, mark(_CLOSE)]


class ChatTemplate:
    """One template with the special tokens of one tokenizer."""

    def __init__(self, text: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
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

        Raises ValueError when the template refuses the conversation or its text holds a reserved character.
        """
        try:
            marked = self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"template_error: {error}") from None
        if _OPEN not in marked:
            return marked, []
        parts = marked.replace(_CLOSE, _OPEN).split(_OPEN)
        if len(parts) % 2 == 0 or marked.count(_OPEN) != marked.count(_CLOSE):
            raise ValueError("reserved_character: the text holds U+FDD0 or U+FDD1")
        spans, position = [], 0
        for index, part in enumerate(parts):
            if index % 2:
                spans.append((position, position + len(part)))
            position += len(part)
        return "".join(parts), spans


def special_tokens(folder: Path) -> dict[str, str]:
    """The tokens that a model folder's tokenizer hands to its template (`eos_token`, ...)."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    named = {key: config.get(key) for key in SPECIAL_TOKENS}
    texts = {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
    return {key: value for key, value in texts.items() if isinstance(value, str)}


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> Callable[..., None]:
    raise jinja2.TemplateError(message)
