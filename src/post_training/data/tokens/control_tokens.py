"""Text in a row that spells a control token never becomes that token.

Nearly all rows spell none, and are encoded as they are. A row is checked when its JSON holds a token that the
template writes, or when its ids hold more control tokens than the template's text does (which also finds
tokens that come about by normalising, or where text meets the template's own). Its template is then rendered with
a mark before each control token of its own, those are replaced by private names, and the whole is encoded by a
tokenizer that knows the tokens by these names alone: what is left of their spelling is ordinary text.
"""

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import orjson
from jinja2 import nodes
from tokenizers import Tokenizer

from post_training.data.tokens.chat_template import (
    CLOSE,
    GENUINE,
    OPEN,
    ChatTemplate,
    Messages,
    as_passed,
    text_and_spans,
)
from post_training.data.tokens.encode import Encoded, Encoder, Ids, Mask, by_offsets, lines_with

_CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
_PROBES: tuple[Messages, ...] = (
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2,
    [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "r", "tool_calls": [_CALL, _CALL]},
        {"role": "tool", "content": "c"},
        {"role": "assistant", "content": "d"},
    ],
)


class ControlTokens:
    """The control tokens of one tokenizer under one template."""

    def __init__(self, template: ChatTemplate, text: str, special_tokens: dict[str, str], encoder: Encoder) -> None:
        """`text` is the template's source, `special_tokens` its variables."""
        self._text, self._special_tokens = text, special_tokens
        self._template, self._encoder = template, encoder
        self._ids = encoder.file.control
        unknown = encoder.file.unknown
        # One place more, to which `np.take` clips the ids behind the last control token.
        self._is_control = np.zeros(max(self._ids.values(), default=0) + 2, dtype=np.bool_)
        self._is_control[[index for index in self._ids.values() if index != unknown]] = True
        rendered = "\0".join([text, *self._probes(template)])
        self._written = [token for token, index in self._ids.items() if token in rendered and index != unknown]
        spelled = [*self._written, *(token for token, index in self._ids.items() if index == unknown)]
        # As orjson writes them inside of a string.
        self._needles = [orjson.dumps(token)[1:-1] for token in spelled]

    def suspects(self, lines: list[bytes]) -> set[int]:
        """Rows of a block whose JSON spells a token that the template writes."""
        return lines_with(lines, self._needles)

    def unexpected(self, marked: list[str], encoded: Encoded) -> set[int]:
        """Texts with more control tokens among the ids than the template's own text spells."""
        counts = encoded.sums(np.take(self._is_control, encoded.ids, mode="clip"))
        spelled = np.array([sum(map(text.count, self._written)) for text in marked], dtype=np.int64)
        return set(np.flatnonzero(counts > spelled).tolist())

    def encode(
        self,
        messages: Messages,
        tools: list[Any] | None,
        prompt: bool,
        policy: str,
        select: Callable[[str, Messages], str],
    ) -> tuple[Ids, Mask]:
        """Ids and mask of one conversation, its spelled tokens as text; `select` leaves the marks of what is trained on.

        Raises ValueError `control_token: ...` under the policy `reject`, and where the template's own tokens cannot be
        distinguished from the row's.
        """
        passed = as_passed(messages)
        marked = self._template.render_marked(passed, tools, prompt)
        traced = self._traced.render_marked(passed, tools, prompt) if self._is_traceable else ""
        if traced.replace(GENUINE, "") != marked:
            raise ValueError("control_token: the template hides which control tokens are its own")
        named, genuine = self._own.subn(lambda match: self._names[match[1]], traced)
        text, spans = text_and_spans(select(named, messages))
        ids, mask = by_offsets(self._twin.encode(text, add_special_tokens=False), spans)
        made = int(np.take(self._is_control, ids, mode="clip").sum())
        if made != genuine or traced.count(GENUINE) != genuine:
            raise ValueError("control_token: the text becomes a control token however it is encoded")
        if policy == "reject":
            plain = self._encoder.tokenizer.encode(text_and_spans(marked)[0], add_special_tokens=False).ids
            if plain != ids.tolist():
                raise ValueError("control_token: the text spells one")
        return ids, mask

    @cached_property
    def _names(self) -> dict[str, str]:
        """Token -> a name that no text holds."""
        return {token: f"{GENUINE}{index}{GENUINE}" for token, index in self._ids.items()}

    @cached_property
    def _pattern(self) -> str:
        return "|".join(map(re.escape, sorted(self._ids, key=len, reverse=True)))

    @cached_property
    def _own(self) -> re.Pattern[str]:
        return re.compile(f"{GENUINE}({self._pattern})")

    @cached_property
    def _twin(self) -> Tokenizer:
        twin = self._encoder.file.load_renamed(self._names)
        wrong = [token for token, name in self._names.items() if twin.token_to_id(name) != self._ids[token]]
        if wrong:
            raise ValueError(f"control_token: {wrong[0]} cannot be renamed in this tokenizer")
        return twin

    @cached_property
    def _traced(self) -> ChatTemplate:
        """The template with a mark before each control token that it writes itself."""
        token = re.compile(self._pattern)
        special = {key: token.sub(GENUINE + r"\g<0>", value) for key, value in self._special_tokens.items()}
        return ChatTemplate(self._text, special, lambda parsed: _mark(parsed, token))

    @cached_property
    def _is_traceable(self) -> bool:
        """Whether every control token in the probes is marked."""
        token = re.compile(self._pattern)
        return all(not token.search(self._own.sub("", text)) for text in self._probes(self._traced))

    @staticmethod
    def _probes(template: ChatTemplate) -> list[str]:
        found = []
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        for messages in _PROBES:
            for given, prompt in ((None, False), (tools, False), (None, True)):
                try:
                    found.append(template.render_marked(as_passed(messages), given, prompt))
                except (
                    ValueError
                ):  # a template may have no tools, no system turn; rows that need them fail by themselves
                    continue
        return [text.replace(OPEN, "").replace(CLOSE, "") for text in found]


def _mark(parsed: nodes.Template, token: re.Pattern[str]) -> None:
    """Mark the control tokens in a template's output, not in strings that it compares or splits text with."""
    for output in parsed.find_all(nodes.Output):
        for node in output.nodes:
            _mark_written(node, token)
    for assignment in parsed.find_all(nodes.Assign):
        _mark_written(assignment.node, token)


def _mark_written(node: nodes.Node | None, token: re.Pattern[str]) -> None:
    if isinstance(node, nodes.TemplateData):
        node.data = token.sub(GENUINE + r"\g<0>", node.data)
    elif isinstance(node, nodes.Const) and isinstance(node.value, str):
        node.value = token.sub(GENUINE + r"\g<0>", node.value)
    elif isinstance(node, nodes.Concat):
        for part in node.nodes:
            _mark_written(part, token)
    elif isinstance(node, nodes.Add | nodes.Or | nodes.And):
        _mark_written(node.left, token)
        _mark_written(node.right, token)
    elif isinstance(node, nodes.CondExpr):
        _mark_written(node.expr1, token)
        _mark_written(node.expr2, token)
