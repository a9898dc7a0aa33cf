"""Rows -> token ids: one block of them at a time, as a worker does it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from post_training.core.errors import DataError
from post_training.data import registry, shapes
from post_training.data.tokens.chat_template import (
    CLOSE,
    OPEN,
    RESERVED,
    ChatTemplate,
    Messages,
    as_passed,
    last_span_only,
    special_tokens,
    trained_spans_only,
)
from post_training.data.tokens.control_tokens import ControlTokens
from post_training.data.tokens.encode import Encoded, Encoder, Ids, Lists, Mask, lines_with
from post_training.data.tokens.engine import Engine
from post_training.data.tokens.tokenizer_file import TokenizerFile

_RESERVED = [mark.encode() for mark in RESERVED]
# A message with these keys alone is passed on to the template as it is.
_PLAIN = frozenset(("role", "content"))


@dataclass
class Settings:
    """Settings that decide the ids of a row, besides its tokenizer."""

    template: str
    """Text of the chat template."""
    shape: str
    """Name of the rows' shape."""
    control_tokens: str = "encode_as_text"
    """`data.special_tokens_in_content`."""
    train_on: str = "assistant"
    """`sft.train_on`."""


@dataclass
class TokenizedBlock:
    """Tokenised rows."""

    columns: dict[str, Lists]
    """Of the kept rows."""
    rows: npt.NDArray[np.int64]
    """Number of the source row of each."""
    parts: npt.NDArray[np.int32]
    """Which of the examples that its source row gave."""
    rows_in: int
    dropped: Counter[str]
    rejects: list[dict[str, Any]]
    """`row`, `part`, `reason` and `detail` of each dropped row."""
    samples: list[tuple[str, Ids]]
    """Some texts with their ids, to be compared with those of the `tokenizers` library."""


class Tokenization:
    """Tokenises blocks of rows of one shape."""

    def __init__(
        self, folder: Path, settings: Settings, file: TokenizerFile | None = None, engine: Engine | None = None
    ) -> None:
        self.settings = settings
        named = special_tokens(folder)
        self.template = ChatTemplate(settings.template, named)
        self.encoder = Encoder(file or TokenizerFile.read(folder), engine)
        self.shape = shapes.load(settings.shape)
        self.last = settings.train_on == "last"
        self.control = ControlTokens(self.template, settings.template, named, self.encoder)

    def block(self, lines: list[bytes]) -> TokenizedBlock:
        """Lines of `rows.jsonl`, in order."""
        rejects: list[dict[str, Any]] = []
        guarded = self.settings.control_tokens != "allow"
        suspects = self.control.suspects(lines) if guarded else set()
        reserved = lines_with(lines, _RESERVED)
        rows: list[dict[str, Any]] = []
        asked: list[tuple[Any, Any, bool]] = []  # messages, tools, generation prompt of each text
        marked: list[str] = []
        careful: set[int] = set()  # texts, not rows
        for index, line in enumerate(lines):
            if index in reserved:
                error = ValueError("reserved_character: the text holds U+FDD0, U+FDD1 or U+FDD2")
                rejects.append(_reject(orjson.loads(line), error))
                continue
            row = orjson.loads(line)
            tools = row.get("tools")
            conversations = self.shape.conversations(row)
            try:
                texts = [self._render(messages, tools, prompt) for messages, prompt in conversations]
            except ValueError as error:
                rejects.append(_reject(row, error))
                continue
            if index in suspects:
                careful.update(range(len(marked), len(marked) + len(texts)))
            rows.append(row)
            asked += [(messages, tools, prompt) for messages, prompt in conversations]
            marked += texts
        encoded = self.encoder.encode(marked)
        if guarded:
            careful |= self.control.unexpected(marked, encoded)
        samples = [
            (marked[i].replace(OPEN, "").replace(CLOSE, ""), encoded[i][0].copy()) for i in range(0, len(marked), 256)
        ]
        if careful:
            rows, encoded = self._carefully(rows, asked, encoded, careful, rejects)
        dropped = Counter[str](entry["reason"] for entry in rejects)
        untrained: Counter[str] = Counter()
        kept, columns = self.shape.columns(rows, encoded, self.settings.train_on, untrained)
        reason = ValueError(f"{' or '.join(sorted(untrained))}: as the template writes it")
        rejects += [_reject(row, reason) for row, keep in zip(rows, kept, strict=True) if not keep]
        dropped += untrained
        sources = [(row["row"], row.get("part", 0)) for row, keep in zip(rows, kept, strict=True) if keep]
        numbers, parts = np.array(sources, dtype=np.int64).reshape(-1, 2).T
        return TokenizedBlock(columns, numbers, parts.astype(np.int32), len(lines), dropped, rejects, samples)

    def _render(self, messages: Messages, tools: list[Any] | None, prompt: bool) -> str:
        """Marked text of a conversation."""
        passed = messages if all(map(_PLAIN.issuperset, messages)) else as_passed(messages)
        return self._select(self.template.render_marked(passed, tools, prompt), messages)

    def _select(self, marked: str, messages: Messages) -> str:
        """Only the marks of what is trained on by `train_on` and the turns' own flags. Raises ValueError `train_flag: ...`."""
        if self.settings.train_on == "all" and any("train" in message for message in messages):
            raise ValueError("train_flag: sft.train_on=all trains on all turns")
        chosen = trained_spans_only(marked, messages)
        return last_span_only(chosen) if self.last else chosen

    def _carefully(
        self,
        rows: list[dict[str, Any]],
        asked: list[tuple[Any, Any, bool]],
        encoded: Encoded,
        careful: set[int],
        rejects: list[dict[str, Any]],
    ) -> tuple[list[dict[str, Any]], Encoded]:
        """Encode again the texts in which a row's own text may have become a control token."""
        size = len(asked) // max(len(rows), 1)
        kept: list[dict[str, Any]] = []
        texts: list[tuple[Ids, Mask]] = []
        for number, row in enumerate(rows):
            own = range(number * size, (number + 1) * size)
            try:
                # All texts of a row alike: a pair's prompt must stay the prefix of its answers.
                again = not careful.isdisjoint(own)
                found = [
                    self.control.encode(*asked[index], self.settings.control_tokens, self._select)
                    if again
                    else encoded[index]
                    for index in own
                ]
            except ValueError as error:
                rejects.append(_reject(row, error))
                continue
            kept.append(row)
            texts += found
        return kept, Encoded.of(texts)


def _reject(row: dict[str, Any], error: ValueError) -> dict[str, Any]:
    reason, _, detail = str(error).partition(":")
    place: dict[str, Any] = {key: row[key] for key in ("row", "part") if key in row}
    return {**place, "reason": reason, "detail": detail.strip()[:500]}


def record_batch(blocks: list[TokenizedBlock], shape: ModuleType, metadata: dict[bytes, str]) -> pa.RecordBatch:
    """Blocks as one batch, with the metadata in its schema: Arrow lists, the number of the source row, which of its examples it is."""
    optional = [name for name in shapes.columns(shape) if any(name in block.columns for block in blocks)]
    arrays = {name: _joined([_lists(block, name) for block in blocks]) for name in optional}
    arrays["row"] = pa.array(np.concatenate([block.rows for block in blocks]))
    arrays["part"] = pa.array(np.concatenate([block.parts for block in blocks]))
    schema = pa.schema([(name, array.type) for name, array in arrays.items()], metadata)
    return pa.record_batch(list(arrays.values()), schema=schema)


def _lists(block: TokenizedBlock, name: str) -> Lists:
    """A column; none of the rows has a value where it is not there."""
    empty = np.zeros(0, dtype=np.int32), np.zeros(len(block.rows) + 1, dtype=np.int64)
    return block.columns.get(name, empty)


def _joined(lists: list[Lists]) -> pa.ListArray:
    values = np.concatenate([part for part, _ in lists])
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(offsets) for _, offsets in lists]))])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def check_template(tokenization: Tokenization) -> int:
    """The token that ends an answer. Raises DataError if it is not trained on, or if the tokenizer lacks a control token.

    A model trained without a stop token never stops; control tokens that are split up teach a format of fragments.
    """
    file = tokenization.encoder.file
    declared = registry.template_tokens(tokenization.settings.template)
    lacking = [token for token in declared.needed if token not in file.control] if declared else []
    if lacking:
        raise DataError(
            f"data.chat_template: the tokenizer in {file.path.parent} has no {', '.join(lacking)}, which the template writes; choose "
            f"a template that fits the model (its control tokens: {_some(file.special.values())})"
        )
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        marked = tokenization.template.render_marked(conversation)
    except ValueError as error:
        raise DataError(f"data.chat_template: cannot render a question and its answer ({error}); fix it") from None
    ids, mask = tokenization.encoder.encode([marked])[0]
    if not mask.any():
        raise DataError("data.chat_template: trains on nothing of an answer; put {% generation %} around it")
    last = int(ids[mask][-1])
    if last not in file.special:
        raise DataError(
            "data.chat_template: the last trained token of an answer is not a special token of the tokenizer, so the model "
            f"would not learn to stop; end the generation block with one of {_some(file.special.values())}"
        )
    return last


def _some(tokens: Iterable[str]) -> str:
    return ", ".join(list(tokens)[:8]) or "none"
