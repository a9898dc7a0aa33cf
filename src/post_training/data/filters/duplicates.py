"""Duplicate rows: exact ones, and near ones by MinHash and locality-sensitive hashing.

Near means a Jaccard similarity of the rows' shingles at or above a threshold (Broder 1997). Signatures of 128 minima
are cut into bands; rows that agree in a band are compared for real, so whatever is removed is as similar as it is
said to be, and of pairs at the threshold fewer than one in a hundred are missed. A row is removed when an earlier row
that stays is its duplicate: the first one stays, and datasets come in the order of the configuration.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from post_training.data.filters.text import content, jaccard, shingles

Keys = npt.NDArray[np.uint64]
PERMUTATIONS = 128
_SEED = 1
_MOST_MISSED = 0.01
# Of rows that begin from one template by the thousand, so many are compared: those that agree in most bands.
_COMPARED, _IN_A_BUCKET = 20, 100


def bands(threshold: float) -> tuple[int, int]:
    """Number of bands and minima in each: the longest bands that miss few pairs at the threshold."""
    for rows in range(PERMUTATIONS, 1, -1):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= _MOST_MISSED:
            return PERMUTATIONS // rows, rows
    return PERMUTATIONS, 1


def columns(config: dict[str, Any]) -> int:
    """Keys of a row: one of its content, and one a band."""
    return {None: 0, "exact": 1, "near": 1 + bands(config["near_threshold"])[0]}[config["deduplicate"]]


def band_keys(sets: list[set[str]], threshold: float) -> Keys:
    """One key a band for each set of shingles, uint64 [sets, bands]."""
    from rensa import RMinHash

    number, length = bands(threshold)
    minima = np.array(
        RMinHash.digest_matrix_from_token_sets(list(map(list, sets)), PERMUTATIONS, _SEED).to_rows(), dtype=np.uint64
    )
    cut = minima[:, : number * length].reshape(len(sets), number, length)
    keys = np.zeros((len(sets), number), dtype=np.uint64)
    for place in range(length):  # FNV-1a, a word at a time
        keys = (keys ^ cut[:, :, place]) * np.uint64(0x100000001B3) + np.uint64(0xCBF29CE484222325)
        keys ^= keys >> np.uint64(29)
    return keys


@dataclass
class Part:
    """The rows of a file that may stay."""

    name: str | None
    """The dataset; None = the one that is filtered."""
    file: BinaryIO
    offsets: npt.NDArray[Any]
    """Where each row begins in the file."""
    keys: Keys

    def read(self, index: int) -> dict[str, Any]:
        """One row."""
        self.file.seek(int(self.offsets[index]))
        return dict(orjson.loads(self.file.readline()))


def find(
    earlier: list[Part], own: Part, threshold: float
) -> Iterator[tuple[int, str, str, str | None, dict[str, Any]]]:
    """Each own row that is a duplicate: its index, reason, detail, and the dataset and row that it repeats."""
    parts = [*earlier, own]
    shared = _shared([part.keys for part in parts])
    buckets: list[dict[int, list[tuple[int, int]]]] = [defaultdict(list) for _ in range(own.keys.shape[1])]

    def add(part: int, index: int) -> None:
        for bucket, key in zip(buckets, parts[part].keys[index].tolist(), strict=True):
            if len(members := bucket[key]) < _IN_A_BUCKET:
                members.append((part, index))

    for number, mask in enumerate(shared[:-1]):
        for index in np.flatnonzero(mask).tolist():
            add(number, index)
    for index in np.flatnonzero(shared[-1]).tolist():
        agree = Counter(
            member
            for bucket, key in zip(buckets, own.keys[index].tolist(), strict=True)
            for member in bucket.get(key, ())
        )
        row = own.read(index) if agree else {}
        # The most alike first, and of those the earliest.
        for (number, other), _ in sorted(agree.items(), key=lambda item: (-item[1], item[0]))[:_COMPARED]:
            partner = parts[number].read(other)
            found = _compare(row, partner, threshold if own.keys.shape[1] > 1 else None)
            if found is not None:
                yield index, *found, parts[number].name, partner
                break
        else:
            add(len(earlier), index)


def _compare(row: dict[str, Any], other: dict[str, Any], threshold: float | None) -> tuple[str, str] | None:
    if content(row) == content(other):
        return "exact_duplicate", ""
    if threshold is None:
        return None
    similarity = jaccard(shingles(row), shingles(other))
    return ("near_duplicate", f"similarity {similarity:.3f}") if similarity >= threshold else None


def _shared(keys: list[Keys]) -> list[npt.NDArray[np.bool_]]:
    """Which rows of each part share a key with another row; the others are no duplicates."""
    ends = np.cumsum([len(part) for part in keys])
    found = np.zeros(ends[-1], dtype=bool)
    for column in range(keys[0].shape[1]):
        values = np.concatenate([part[:, column] for part in keys])
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        same = ordered[1:] == ordered[:-1]
        found[order[1:][same]] = True
        found[order[:-1][same]] = True
    return np.split(found, ends[:-1])
