"""Rows that contain evaluation texts, by n-grams of words.

A row is contaminated when, of one evaluation text, more than a share of the words are in n-grams that the row has
too: 8-grams and half of the words in Tulu 3 (Lambert et al. 2024, arXiv:2411.15124, 3.2); any common 13-gram in
GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C), which is `ngram_words: 13, ngram_overlap: 0`. Words are lower
case and without punctuation. Texts are single turns, or single strings of a file's rows; those shorter than an n-gram
are skipped and counted.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from post_training.data.filters.text import all_strings, turn_texts, words
from post_training.data.reading.readers import read_blocks
from post_training.data.reading.records import parse

Ids = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]
_MULTIPLIER = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Match:
    """Overlap of a row with an evaluation text."""

    dataset: str
    row: int
    share: float
    """Of the text's words that are in common n-grams."""


class EvaluationTexts:
    """n-grams of evaluation texts: some 30 bytes a word, in sorted arrays."""

    def __init__(self, texts: Iterator[tuple[str, int, str]], size: int, overlap: float) -> None:
        """`texts`: (dataset, row, text); `size`: words of an n-gram; `overlap`: share above which a row matches."""
        self.size, self.overlap = size, overlap
        self.vocabulary: dict[str, int] = {}
        self.sources: list[tuple[str, int]] = []
        self.counts, self.too_short = Counter[str](), Counter[str]()
        parts: list[Ids] = []
        for dataset, row, text in texts:
            found = words(text)
            if len(found) < size:
                self.too_short[dataset] += 1
                continue
            self.counts[dataset] += 1
            self.sources.append((dataset, row))
            # 0 is for words that no evaluation text has.
            parts.append(
                np.array([self.vocabulary.setdefault(w, len(self.vocabulary) + 1) for w in found], dtype=np.uint32)
            )
        self.starts = np.cumsum([0, *map(len, parts)])
        self.ids: Ids = np.concatenate(parts) if parts else np.zeros(0, np.uint32)
        places = [np.arange(a, b - size + 1) for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]
        where = np.concatenate(places) if places else np.zeros(0, np.int64)
        hashes = self._hashes(self.ids)[where] if len(where) else np.zeros(0, np.uint64)
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.where = hashes[order], where[order]

    def match(self, row: dict[str, Any]) -> Match | None:
        """The evaluation text with the largest overlap, if that is above the limit."""
        covered: dict[int, set[int]] = {}
        for text in turn_texts(row):
            self._cover(text, covered)
        best: tuple[float, int] | None = None
        for text_number, places in covered.items():
            share = len(places) / int(self.starts[text_number + 1] - self.starts[text_number])
            if share > self.overlap and (best is None or (share, -text_number) > best):
                best = (share, -text_number)
        return None if best is None else Match(*self.sources[-best[1]], best[0])

    def _cover(self, text: str, covered: dict[int, set[int]]) -> None:
        """Add, for each evaluation text, the places of its words that are in n-grams of this text."""
        vocabulary = self.vocabulary
        ids = np.array([vocabulary.get(word, 0) for word in words(text)], dtype=np.uint32)
        if np.count_nonzero(ids) < self.size:
            return
        unknown = np.concatenate([[0], np.cumsum(ids == 0)])
        starts = np.flatnonzero(unknown[self.size :] == unknown[: -self.size])
        if not len(starts):
            return
        hashes = self._hashes(ids)[starts]
        first = np.searchsorted(self.hashes, hashes)
        last = np.searchsorted(self.hashes, hashes, side="right")
        for index in np.flatnonzero(last > first):
            gram = ids[starts[index] : starts[index] + self.size]
            for found in self.where[first[index] : last[index]].tolist():
                if np.array_equal(self.ids[found : found + self.size], gram):  # and not only of the same hash
                    number = int(np.searchsorted(self.starts, found, side="right")) - 1
                    covered.setdefault(number, set()).update(range(found, found + self.size))

    def _hashes(self, ids: Ids) -> Hashes:
        """Of each n-gram, as a polynomial modulo 2**64."""
        powers = np.array([pow(_MULTIPLIER, power, 1 << 64) for power in range(self.size)], dtype=np.uint64)
        return np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), self.size) @ powers


def texts_of_stage(name: str, manifest: Path) -> Iterator[tuple[str, int, str]]:
    """(dataset, row, text) of a transformed evaluation set."""
    with (manifest.parent / "rows.jsonl").open("rb") as lines:
        for line in lines:
            row = orjson.loads(line)
            for text in turn_texts(row):
                yield name, row["row"], text


def texts_of_file(path: Path) -> Iterator[tuple[str, int, str]]:
    """(file, row, text) of a data file of any shape; invalid records have no text."""
    for block in read_blocks([path]):
        for number, record in block.records():
            row = parse(record) if type(record) is bytes else record
            for text in all_strings(row):
                yield str(path), number, text
