"""Text -> token ids and the tokens that its trained characters cover."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from post_training.data.chat_template import Span
from post_training.errors import DataError

IGNORED = -100
"""The label of a token that is not trained on, as torch's cross entropy has it."""
Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Offsets = npt.NDArray[np.int64]


class Encoder:
    """A tokenizer that encodes whole renderings.

    Encoding turn by turn would give other ids where tokens merge across a boundary, so spans are
    found in the whole text afterwards, as `apply_chat_template(return_assistant_tokens_mask)` does.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(
                f"{path}: cannot be read as a tokenizer ({error}); save the model's tokenizer with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...) to make it"
            ) from None
        # Truncation or padding saved with a tokenizer would cut or fill every row in silence.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._normalizer = self._tokenizer.normalizer
        self._byte_lengths = _byte_lengths(json.loads(path.read_text(encoding="utf-8")))

    def encode(self, texts: list[str], spans: list[list[Span]]) -> list[tuple[Ids, Mask]]:
        """Ids (int32) and, of the same length, whether a token belongs to a span; one pair a text."""
        # `fast` computes no offsets; they are made from the ids' byte lengths below, where that is possible.
        batch = self._tokenizer.encode_batch_fast if self._byte_lengths is not None else self._tokenizer.encode_batch
        encodings = batch(texts, add_special_tokens=False)
        return [self._masked(*row) for row in zip(texts, spans, encodings, strict=True)]

    def _masked(self, text: str, spans: list[Span], encoding: Encoding) -> tuple[Ids, Mask]:
        ids = np.array(encoding.ids, dtype=np.int32)
        mask = np.zeros(len(ids), dtype=np.bool_)
        if not spans:
            return ids, mask
        if self._byte_lengths is not None:
            ends = np.cumsum(self._byte_lengths[ids])
            if len(ids) and ends[-1] == len(text.encode()) and self._keeps(text):
                positions = [(_byte_position(text, start), _byte_position(text, end - 1)) for start, end in spans]
                return ids, _cover(mask, ends, positions)
            # A normaliser changed the text: the library's own offsets refer to the original.
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return ids, _cover(mask, offsets[:, 1], [(start, end - 1) for start, end in spans], offsets[:, 0])

    def _keeps(self, text: str) -> bool:
        """Whether the tokenizer's normaliser leaves a text as it is."""
        return self._normalizer is None or self._normalizer.normalize_str(text) == text


def _cover(mask: Mask, ends: Offsets, positions: list[tuple[int, int]], starts: Offsets | None = None) -> Mask:
    """Mark the tokens from the one with the first position to the one with the last, both included.

    A position can be in no token where `starts` are given, because some tokenizers drop blanks: then the nearest
    token inside the span counts. (Transformers would mark everything up to the end of the text.)
    """
    for first, last in positions:
        if last >= first:
            begin, end = np.searchsorted(ends, (first, last), "right")
            past = starts is not None and (end == len(starts) or starts[end] > last)
            mask[begin : end if past else end + 1] = True
    return mask


def _byte_position(text: str, position: int) -> int:
    return position if text.isascii() else len(text[:position].encode())


def _byte_lengths(tokenizer: dict[str, Any]) -> npt.NDArray[np.int64] | None:
    """Bytes that each id stands for, where every id has a fixed number of them (byte-level BPE); else None."""
    kinds = [part for part in _parts(tokenizer.get("pre_tokenizer")) if part.get("type") == "ByteLevel"]
    if tokenizer["model"].get("type") != "BPE" or not kinds or any(part.get("add_prefix_space") for part in kinds):
        return None
    entries = {**tokenizer["model"]["vocab"]}
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    # Tokens that swallow neighbouring blanks stand for more bytes than their text has.
    if any(token.get("lstrip") or token.get("rstrip") for token in tokenizer.get("added_tokens", [])):
        return None
    lengths = np.zeros(max([*entries.values(), *added.values()]) + 1, dtype=np.int64)
    for text, index in entries.items():
        lengths[index] = len(text)  # one character of the byte alphabet a byte
    for text, index in added.items():
        lengths[index] = len(text.encode())
    return lengths


def _parts(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    if component is None:
        return []
    return [component, *(part for key in ("pretokenizers",) for part in component.get(key, []))]


def common_prefix(first: Ids, second: Ids) -> int:
    """Tokens that two renderings share from the start."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size
