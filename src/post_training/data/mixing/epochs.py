"""The order and the packing of each epoch: an index over a mix's documents, `epoch-00000.npy` and so on.

An epoch depends on the mix alone (`keys.npy` and its seed), not on the length of training: a longer run adds epochs and
changes none, and runs of any length share a mix.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from post_training.core import manifest
from post_training.core.fingerprint import replacing
from post_training.data.mixing.packing import Indices, best_fit
from post_training.data.view import epoch_path, part_file

KEY_TYPE = np.dtype([("key", "<u8"), ("copies", "<i4"), ("length", "<i4")])
"""Record of `keys.npy`, one a document: a hash of seed, dataset and row; how often an epoch has the document; and
the tokens that it takes up in a row."""
Keys = npt.NDArray[np.uint64]


def write_epochs(path: Path, rows: int) -> None:
    """Write the epochs that a training of `rows` rows needs and that are missing.

    Args:
        path: manifest of the mix.
        rows: rows of the whole training, as `view.open_rows` takes them.
    """
    facts = manifest.read(path)
    wanted = -(-rows // facts["rows_out"])
    for number in range(wanted):
        if not epoch_path(path, number).is_file():
            write_epoch(path, number, facts["config"])


def write_epoch(path: Path, number: int, config: dict[str, Any], part: str = "train") -> int:
    """Write one epoch beside the mix's manifest `path`; returns its number of rows, the same for every epoch."""
    keys = np.load(part_file(path, part, "keys.npy"), mmap_mode="r")
    members = order(keys["key"], keys["copies"], number)
    if config["packing"]:
        packed, starts = best_fit(keys["length"][members].astype(np.int64), config["max_seq_length"])
        # Rows come out from long to short documents; a seeded order mixes them again.
        by_key = np.argsort(row_keys(config["seed"], f"packed {number}", np.arange(len(starts) - 1)), kind="stable")
        members, starts = _rearranged(members[packed], starts, by_key)
    else:
        starts = np.arange(len(members) + 1)
    save(epoch_path(path, number, part), np.concatenate([starts, members]).astype(np.int32))
    return len(starts) - 1


def longest_row(path: Path, rows: int) -> int:
    """Tokens of the longest of the first epoch's `rows` packed rows."""
    epoch, keys = np.load(epoch_path(path, 0)), np.load(part_file(path, "train", "keys.npy"), mmap_mode="r")
    starts, members = epoch[: rows + 1], epoch[rows + 1 :]
    return int(np.add.reduceat(keys["length"][members].astype(np.int64), starts[:-1]).max())


def order(keys: Keys, copies: npt.NDArray[np.int32], epoch: int) -> Indices:
    """Documents by number, each as often as it has copies, in the order of one epoch.

    A document's place among others depends on its key alone, so another document moves none.
    """
    numbers = np.repeat(np.arange(len(keys)), copies)
    copy = np.arange(len(numbers)) - np.repeat(np.cumsum(copies) - copies, copies)
    with np.errstate(over="ignore"):
        shifted = keys[numbers] + np.uint64(epoch) * np.uint64(0xD1342543DE82EF95) + copy.astype(np.uint64)
    return numbers[np.argsort(scrambled(shifted), kind="stable")]


def row_keys(seed: int, purpose: str, numbers: Indices) -> Keys:
    """A pseudo-random uint64 a row from seed, purpose and row number."""
    salt = int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        return scrambled(numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt))


def save(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array atomically: two runs may write the same epoch of a shared mix at once, to the same bytes."""
    with replacing(path) as file:
        np.save(file, array, allow_pickle=False)


def scrambled(keys: Keys) -> Keys:
    """The finaliser of splitmix64."""
    with np.errstate(over="ignore"):
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(keys ^ (keys >> np.uint64(31)), dtype=np.uint64)


def _rearranged(members: Indices, starts: Indices, rows: Indices) -> tuple[Indices, Indices]:
    """The same rows in another order."""
    sizes = np.diff(starts)[rows]
    ends = np.cumsum(sizes)
    within = np.arange(len(members)) - np.repeat(ends - sizes, sizes)
    return members[np.repeat(starts[rows], sizes) + within], np.concatenate([[0], ends])
