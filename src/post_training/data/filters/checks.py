"""Filters that test each row by itself, in worker processes."""

import hashlib
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from post_training.core.errors import DataError, did_you_mean
from post_training.data.filters import duplicates
from post_training.data.filters.contamination import EvaluationTexts, texts_of_file, texts_of_stage
from post_training.data.filters.text import content, shingles, turn_texts, turns

# The language is identified from the first characters of a row; shorter texts are not classified.
_MOST_CHARS, _LEAST_CHARS = 2000, 20


@dataclass(frozen=True)
class Job:
    """Input of the workers."""

    source: Path
    config: dict[str, Any]
    """The keys of `data.filters`."""
    evaluation: dict[str, Path]
    """Name -> manifest of a transformed evaluation set."""
    files: list[Path]
    """Further evaluation sets."""


@dataclass
class Removal:
    """Why a row is removed, and the other row if there is one."""

    reason: str
    detail: str
    partner: dict[str, Any] | None = None


@dataclass
class Checked:
    """A range of the source's bytes."""

    offsets: npt.NDArray[np.int64]
    """Where each row begins."""
    keys: npt.NDArray[np.uint64]
    """A row each, `duplicates.columns` wide: equal in one column for rows that may be duplicates."""
    removed: dict[int, Removal] = field(default_factory=dict)
    """By row of the range."""


class Checks:
    """All filters of a configuration that look at one row."""

    def __init__(self, job: Job) -> None:
        self.job, self.config = job, job.config
        self.evaluation: EvaluationTexts | None = None
        if self.config["decontaminate"]:
            texts = chain(
                *(texts_of_stage(name, path) for name, path in job.evaluation.items()),
                *(texts_of_file(path) for path in job.files),
            )
            self.evaluation = EvaluationTexts(texts, self.config["ngram_words"], self.config["ngram_overlap"])
        self._identifier: Any = None
        if self.config["languages"]:
            self._identifier = _language_identifier(self.config["languages"])

    def range(self, start: int, end: int) -> Checked:
        """Rows in [start, end) of the source."""
        with self.job.source.open("rb") as file:
            file.seek(start)
            lines = file.read(end - start).splitlines(keepends=True)
        offsets = start + np.cumsum([0, *map(len, lines)])[:-1]
        rows = [orjson.loads(line) for line in lines]
        removed = {index: found for index, row in enumerate(rows) if (found := self._check(row)) is not None}
        return Checked(offsets, self._keys(rows, removed), removed)

    def _check(self, row: dict[str, Any]) -> Removal | None:
        return self._length(row) or self._language(row) or self._contamination(row)

    def _length(self, row: dict[str, Any]) -> Removal | None:
        for unit, size in (("characters", sum(map(len, turn_texts(row)))), ("turns", len(turns(row)))):
            least, most = self.config[f"min_{unit}"], self.config[f"max_{unit}"]
            if least is not None and size < least:
                return Removal(f"too_few_{unit}", f"{size:,} of at least {least:,}")
            if most is not None and size > most:
                return Removal(f"too_many_{unit}", f"{size:,} of at most {most:,}")
        return None

    def _language(self, row: dict[str, Any]) -> Removal | None:
        if self._identifier is None:
            return None
        text = "\n".join(turn_texts(row))[:_MOST_CHARS]
        if sum(character.isalpha() for character in text) < _LEAST_CHARS:
            return None
        language, confidence = self._identifier.classify(text)
        # `zxx` is what is no language: numbers, markup, code.
        if language in (*self.config["languages"], "zxx") or confidence < self.config["min_language_confidence"]:
            return None
        return Removal("other_language", f"{language}, {confidence:.2f}")

    def _contamination(self, row: dict[str, Any]) -> Removal | None:
        found = self.evaluation.match(row) if self.evaluation else None
        if found is None:
            return None
        detail = f"{found.share:.2f} of the text's words are in common {self.config['ngram_words']}-grams"
        return Removal("contaminated", detail, {"dataset": found.dataset, "row": found.row})

    def _keys(self, rows: list[dict[str, Any]], removed: dict[int, Removal]) -> npt.NDArray[np.uint64]:
        keys = np.zeros((len(rows), duplicates.columns(self.config)), dtype=np.uint64)
        if not keys.shape[1]:
            return keys
        kept = [index for index in range(len(rows)) if index not in removed]
        for index in kept:
            keys[index, 0] = int.from_bytes(hashlib.blake2b(content(rows[index]), digest_size=8).digest(), "little")
        if keys.shape[1] > 1 and kept:
            keys[kept, 1:] = duplicates.band_keys(
                [shingles(rows[index]) for index in kept], self.config["near_threshold"]
            )
        return keys


def _language_identifier(languages: list[str]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = [str(label) for label in identifier.labels]
    for language in languages:
        if language not in known:
            raise DataError(f"data.filters.languages: found {language!r}. {did_you_mean(language, known)}")
    return identifier
