"""Rendered text -> token ids, and which tokens its trained characters cover.

Complete renderings are encoded: turn by turn would give other ids where tokens merge across a boundary. Spans
are found in the full text afterwards, as `apply_chat_template(return_assistant_tokens_mask)` does.
"""

import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Encoding, Tokenizer

from post_training.data.tokens.chat_template import CLOSE, OPEN, Span, text_and_spans
from post_training.data.tokens.engine import Engine, HuggingFace, flat
from post_training.data.tokens.tokenizer_file import TokenizerFile

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Offsets = npt.NDArray[np.int64]
Lists = tuple[Ids, Offsets]
"""Lists of int32: their values one after the other, and where each begins, `[lists + 1]`."""


@dataclass
class Encoded:
    """Several texts, one after the other."""

    ids: Ids
    mask: Mask
    """Whether each token belongs to a span."""
    offsets: Offsets
    """Where each text's tokens begin, `[texts + 1]`."""

    @classmethod
    def of(cls, texts: list[tuple[Ids, Mask]]) -> "Encoded":
        """Put texts together."""
        ids, offsets = flat([ids for ids, _ in texts])
        return cls(ids, flat([mask for _, mask in texts])[0].astype(np.bool_), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[Ids, Mask]:
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.mask[part]

    def sums(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        """The sum over each text of a value a token."""
        before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        return np.diff(before[self.offsets])


class Encoder:
    """Encodes text with U+FDD0 and U+FDD1 around trained spans (`chat_template`) by one tokenizer."""

    def __init__(self, file: TokenizerFile, engine: Engine | None = None) -> None:
        self.file = file
        self._engine = engine

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The `tokenizers` library's, loaded when it is needed."""
        return self.file.load()

    @cached_property
    def engine(self) -> Engine:
        """The given engine, or the `tokenizers` library."""
        return self._engine or HuggingFace(self.tokenizer)

    def encode(self, marked: list[str]) -> Encoded:
        """Ids and masks of marked texts."""
        if self.file.byte_lengths is None:
            plain = [text_and_spans(text) for text in marked]
            encodings = self.tokenizer.encode_batch([text for text, _ in plain], add_special_tokens=False)
            return Encoded.of([by_offsets(e, spans) for e, (_, spans) in zip(encodings, plain, strict=True)])
        return self._by_byte_lengths(marked, self.file.byte_lengths)

    def _by_byte_lengths(self, marked: list[str], byte_lengths: npt.NDArray[np.int64]) -> Encoded:
        """A token's position in the text is the sum of the byte lengths before it: no offsets are needed."""
        texts: list[str] = []
        sizes: list[int] = []  # bytes of each part: outside, inside, outside, ..., outside
        lasts: list[int] = []  # bytes of each part's last character
        counts: list[int] = []  # parts of each text
        changed: list[int] = []  # texts that the normaliser alters
        for index, text in enumerate(marked):
            parts = text.replace(CLOSE, OPEN).split(OPEN)
            plain = "".join(parts)
            texts.append(plain)
            counts.append(len(parts))
            if plain.isascii():
                sizes += map(len, parts)
                lasts += [1] * len(parts)
            else:
                sizes += [len(part.encode()) for part in parts]
                lasts += [len(part[-1:].encode()) for part in parts]
            if self.file.normalizer is not None and not self._keeps(plain):
                changed.append(index)
        ids, offsets = self.engine.encode(texts)
        encoded = Encoded(ids, np.zeros(len(ids), dtype=np.bool_), offsets)
        part_counts = np.array(counts, dtype=np.int64)
        part_ends = np.cumsum(np.array(sizes, dtype=np.int64))
        text_ends = part_ends[np.cumsum(part_counts) - 1] if counts else part_ends
        text_starts = np.concatenate([[0], text_ends[:-1]])
        # Where each text begins by the ids' own count; the two differ where ids are not the whole text.
        token_ends = np.cumsum(byte_lengths[ids])
        before = np.concatenate([[0], token_ends])[offsets]
        good = np.diff(before) == text_ends - text_starts
        good[changed] = False
        owner = np.repeat(np.arange(len(counts)), part_counts)
        position = np.arange(len(sizes)) - np.repeat(np.cumsum(part_counts) - part_counts, part_counts)
        inside = np.flatnonzero((position % 2 == 1) & (np.array(sizes) > 0) & good[owner])
        shift = (before[:-1] - text_starts)[owner[inside]]
        first = part_ends[inside] - np.array(sizes, dtype=np.int64)[inside] + shift
        last = part_ends[inside] - np.array(lasts, dtype=np.int64)[inside] + shift
        steps = np.zeros(len(ids) + 1, dtype=np.int64)
        np.add.at(steps, np.searchsorted(token_ends, first, "right"), 1)
        np.add.at(steps, np.searchsorted(token_ends, last, "right") + 1, -1)
        np.greater(np.cumsum(steps[:-1]), 0, out=encoded.mask)
        for index in np.flatnonzero(~good).tolist():
            # The library's own offsets refer to the text before the normaliser.
            plain, spans = text_and_spans(marked[index])
            encoded[index][1][:] = by_offsets(self.tokenizer.encode(plain, add_special_tokens=False), spans)[1]
        return encoded

    def _keeps(self, text: str) -> bool:
        """Whether the tokenizer's normaliser leaves a text unchanged."""
        if self.file.normalizer == "NFC":
            return text.isascii() or unicodedata.is_normalized("NFC", text)
        return bool(self.tokenizer.normalizer.normalize_str(text) == text)


def by_offsets(encoding: Encoding, spans: list[Span]) -> tuple[Ids, Mask]:
    """Ids and mask by the characters that each token comes from."""
    ids = np.array(encoding.ids, dtype=np.int32)
    mask = np.zeros(len(ids), dtype=np.bool_)
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0], offsets[:, 1]
    for start, stop in spans:
        if stop > start:
            begin, end = np.searchsorted(ends, (start, stop - 1), "right")
            # A character can be in no token, because some tokenizers drop blanks: then the nearest token inside the
            # span counts. (Transformers would mark everything up to the end of the text.)
            past = end == len(starts) or starts[end] > stop - 1
            mask[begin : end if past else end + 1] = True
    return ids, mask


def common_prefix(first: Ids, second: Ids) -> int:
    """Tokens that two renderings share from the start."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size


def lines_with(lines: list[bytes], words: list[bytes]) -> set[int]:
    """Indices of the lines that contain one of some words."""
    joined = b"\n".join(lines)
    found = [word for word in words if word in joined]
    return {index for index, line in enumerate(lines) if any(word in line for word in found)} if found else set()


def sizes(batch: pa.RecordBatch, *columns: str) -> list[npt.NDArray[np.int64]]:
    """Tokens in each row of list columns."""
    return [np.diff(batch.column(name).offsets.to_numpy()).astype(np.int64) for name in columns]


def prompt_and_answer(row: dict[str, Any], answer: str) -> tuple[str, Ids, Mask]:
    """A training row's prompt with one answer, as `sequences` of a shape returns it: name, ids, trained mask."""
    ids = np.concatenate([row["prompt_ids"], row[f"{answer}_ids"]])
    return answer, ids, np.arange(len(ids)) >= len(row["prompt_ids"])
