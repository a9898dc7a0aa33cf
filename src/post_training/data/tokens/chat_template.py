"""Chat templates, compiled once, rendered with the spans that are trained on.

Sandbox, filters and variables are those of `apply_chat_template`, so both render the same text. There is no clock: a
template that asks for the date would render differently tomorrow.
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

from post_training.core.errors import DataError
from post_training.data import registry

# Noncharacters: Unicode promises that they never stand for text, so they can mark spans in it.
OPEN, CLOSE, GENUINE = "\ufdd0", "\ufdd1", "\ufdd2"
RESERVED = (OPEN, CLOSE, GENUINE)
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REASONING = ("reasoning_content", "thinking", "reasoning")
# Where Transformers has a processor's template, and templates by name beside the default one.
_OF_PROCESSOR, _BY_NAME = "chat_template.json", "additional_chat_templates"
Span = tuple[int, int]
Messages = list[dict[str, Any]]


class _Generation(Extension):
    """`{% generation %}`: marks the assistant's text."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # What the body sets stays in the body, as in Transformers, which makes it a macro: several times as slow.
        marked = [_output(OPEN), *body, _output(CLOSE)]
        return nodes.Scope(marked).set_lineno(line)


def _output(text: str) -> nodes.Output:
    return nodes.Output([nodes.TemplateData(text)])


class ChatTemplate:
    """One template with the special tokens of one tokenizer."""

    def __init__(
        self,
        text: str,
        special_tokens: dict[str, str],
        change: Callable[[nodes.Template], None] | None = None,
        clock: Callable[[str], str] | None = None,
    ) -> None:
        """Compile; `change` may alter the parsed template before, `clock` replaces `strftime_now`. Raises DataError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise, "strftime_now": clock or _no_clock}
        if any(mark in text for mark in RESERVED):
            raise DataError("chat template: holds U+FDD0, U+FDD1 or U+FDD2, which mark what is trained on; remove it")
        try:
            parsed = environment.parse(text)
            if change is not None:
                change(parsed)
            code = environment.compile(parsed)
        except jinja2.TemplateError as error:
            raise DataError(f"chat template: line {getattr(error, 'lineno', '?')}: {error}") from None
        self._template = environment.template_class.from_code(environment, code, environment.make_globals(None))
        self._given = {**self._template.globals, "documents": None, **special_tokens}

    def render_marked(
        self, messages: Messages, tools: list[Any] | None = None, add_generation_prompt: bool = False
    ) -> str:
        """The text with U+FDD0 and U+FDD1 around the trained spans; `messages` as `as_passed` returns them.

        Raises ValueError, `template_error: detail`, when the template cannot render the conversation.
        """
        given = {**self._given, "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:  # what `Template.render` does, without its copies of what is given
            return "".join(self._template.root_render_func(self._template.new_context(given, shared=True)))
        except Exception as error:  # a template is a program: adding text to nothing is a TypeError, and so on
            raise ValueError(f"template_error: {' '.join(str(error).split())}") from None

    def render(
        self, messages: Messages, tools: list[Any] | None = None, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The text of a conversation and the [start, end) characters that are trained on.

        Raises ValueError, `reason: detail`, when the template cannot render the conversation or its text holds a
        reserved character, with which it could choose what is trained on.
        """
        if holds_reserved(messages) or holds_reserved(tools):
            raise ValueError("reserved_character: the text holds U+FDD0, U+FDD1 or U+FDD2")
        return text_and_spans(self.render_marked(as_passed(messages), tools, add_generation_prompt))


def text_and_spans(marked: str) -> tuple[str, list[Span]]:
    """Marked text -> the text without marks and the marked [start, end) characters."""
    parts = marked.replace(CLOSE, OPEN).split(OPEN)
    spans, position = [], 0
    for index, part in enumerate(parts):
        if index % 2:
            spans.append((position, position + len(part)))
        position += len(part)
    return "".join(parts), spans


def last_span_only(marked: str) -> str:
    """Marked text without the marks before its last span."""
    start = marked.rfind(OPEN)
    return marked if start < 0 else marked[:start].replace(OPEN, "").replace(CLOSE, "") + marked[start:]


def trained_spans_only(marked: str, messages: Messages) -> str:
    """Marked text without the marks of the assistant turns that have `train: false`.

    Raises ValueError, `train_flag: detail`, where the template does not write one span for each assistant turn.
    """
    if not any("train" in message for message in messages):
        return marked
    wanted = ["train" not in message for message in messages if message["role"] == "assistant"]
    if marked.count(OPEN) != len(wanted):
        found = f"{marked.count(OPEN)} spans for {len(wanted)} assistant turns"
        raise ValueError(f"train_flag: the template marks {found}, so turns cannot be left out")
    before, *spans = marked.split(OPEN)
    kept = [OPEN + span if keep else span.replace(CLOSE, "") for span, keep in zip(spans, wanted, strict=True)]
    return before + "".join(kept)


def as_passed(messages: Messages) -> Messages:
    """As Transformers passes messages on: without null values, and with reasoning under the names that templates read.

    Whether a turn is trained on is not the template's business.
    """
    passed = []
    for message in messages:
        kept = {key: value for key, value in message.items() if value is not None and key != "train"}
        reasoning = next((kept[key] for key in _REASONING if key in kept), None)
        passed.append(kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning})
    return passed


def holds_reserved(value: Any) -> bool:
    """Whether any string in a JSON value holds a reserved character."""
    if isinstance(value, str):
        return any(mark in value for mark in RESERVED)
    if isinstance(value, dict):
        return any(holds_reserved(item) for pair in value.items() for item in pair)
    return isinstance(value, list) and any(map(holds_reserved, value))


def resolve_template(text: str, folder: Path) -> str:
    """The template's text, or the one of the tokenizer in `folder` where the configuration says `tokenizer`."""
    if text != registry.OWN_TEMPLATE:
        return text
    own = _own_template(folder)
    remedy = f"choose one of {', '.join(registry.chat_template_names())}, or the path of a copy of its own with markers"
    if own is None:
        raise DataError(
            f"data.chat_template: the tokenizer in {folder} has no template of its own{_elsewhere(folder)}; {remedy}"
        )
    if not registry.can_mask(own):
        raise DataError(
            f"data.chat_template: the template of the tokenizer in {folder} has no generation markers, so nothing could "
            f"be trained on; {remedy} ({{% generation %}} ... {{% endgeneration %}} around what the assistant says)"
        )
    return own


def _own_template(folder: Path) -> str | None:
    """The template of a model's folder; of several by name `default`, as `own_template` of a loaded tokenizer."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); save the model's tokenizer again") from None
    found = _json_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several by name
        found = _by_name(found).get("default")
    return found if isinstance(found, str) else None


def _by_name(templates: list[Any]) -> dict[Any, Any]:
    return {one.get("name"): one.get("template") for one in templates if isinstance(one, dict)}


def _elsewhere(folder: Path) -> str:
    """Where a folder without a template of the tokenizer has one of its processor, or others by name."""
    if (folder / _OF_PROCESSOR).is_file():
        return f"; its processor has one, in {_OF_PROCESSOR}: write that text to {folder}/chat_template.jinja, with markers"
    own = _json_object(folder / "tokenizer_config.json").get("chat_template")
    named = [*(_by_name(own) if isinstance(own, list) else ())]
    named += [path.relative_to(folder) for path in sorted((folder / _BY_NAME).glob("*.jinja"))]
    listed = ", ".join(map(str, named))
    return f" but {listed}: write the one you mean to {folder}/chat_template.jinja, with markers" if named else ""


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


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _no_clock(*_: str) -> None:
    raise jinja2.TemplateError(
        "the template asks for today's date, so it would render differently tomorrow; remove that"
    )
