"""Stored reference log-probabilities of every distinct pair of a mix: shards, `logps.npy`, and how training reads them.

A preference loss compares the policy with a model that never changes, so that model's log-probabilities
belong to the data: they are computed once (reference_rank.py), shared by every beta, loss and learning
rate, and training holds one model instead of two. The pairs are cut into shards whose borders depend on
their number alone. A shard is complete on disk or absent, so a killed stage resumes with what is
missing, on any number of ranks.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.fingerprint import file_sha256
from post_training.core.task import Task
from post_training.data.view import open_rows
from post_training.models.files import remove_folder

Logps = npt.NDArray[np.float32]
"""Natural log-probabilities of the chosen and the rejected answer, [pairs, 2]."""
Shard = tuple[int, int]
"""First document, and the one after the last."""
FILE = "logps.npy"
_PROBES = 8


def shards(documents: int) -> list[Shard]:
    """Ranges of document ids, 8 to 512 long: small enough to lose little, large enough for few files."""
    size = min(512, max(8, -(-documents // 64)))
    return [(start, min(start + size, documents)) for start in range(0, documents, size)]


def missing_shards(directory: Path, documents: int) -> list[Shard]:
    """The shards that are still to be computed; one that is cut off or holds a NaN is missing."""
    return [shard for shard in shards(documents) if read_shard(directory, shard) is None]


def shard_path(directory: Path, shard: Shard) -> Path:
    """`shards/logps-<first>-<after last>.npy`."""
    return directory / "shards" / f"logps-{shard[0]:08d}-{shard[1]:08d}.npy"


def read_shard(directory: Path, shard: Shard) -> Logps | None:
    """The shard's log-probabilities, or None if it is incomplete or absent."""
    try:
        found = np.load(shard_path(directory, shard), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (shard[1] - shard[0], 2) and np.isfinite(found).all() else None


def write_array(path: Path, array: Logps) -> None:
    """Write an array atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with open(unfinished, "wb") as file:
        np.save(file, array.astype(np.float32), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def finish_if_complete(task: Task) -> bool:
    """Write `logps.npy` and the manifest if no shard is missing; says whether it did."""
    pairs = open_rows(task.inputs["data"]).distinct()
    wanted = shards(len(pairs))
    parts = [part for shard in wanted if (part := read_shard(task.directory, shard)) is not None]
    if len(parts) < len(wanted):
        return False
    logps: Logps = np.concatenate(parts)
    path = task.directory / FILE
    write_array(path, logps)
    probes = sorted({int(number) for number in np.linspace(0, len(pairs) - 1, _PROBES)})
    task.finish(
        rows_in=len(pairs),
        rows_out=len(logps),
        dropped={},
        mean_chosen_logp=float(logps[:, 0].mean()),
        mean_rejected_logp=float(logps[:, 1].mean()),
        probes={str(number): pair_sha256(pairs[number]) for number in probes},
        files=[{"path": FILE, "bytes": path.stat().st_size, "sha256": file_sha256(path)}],
    )
    remove_folder(task.directory / "shards")
    print(f"reference: {len(logps):,} pairs done; {path}", flush=True)
    return True


def pair_sha256(pair: dict[str, Any]) -> str:
    """sha256 (hex) of a pair's token ids."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return hashlib.sha256(
        b"".join(np.asarray(pair[name], dtype=np.int64).tobytes() + b"|" for name in names)
    ).hexdigest()


class StoredReference:
    """The log-probabilities of a finished reference stage, memory-mapped."""

    def __init__(self, manifest_path: Path, start: str) -> None:
        self.path = manifest_path
        self.manifest = manifest.read(manifest_path)
        self.of_start = self.manifest["inputs"]["model"]["fingerprint"] == start
        """Whether they are of the model that the run starts from, whose fingerprint is `start`."""
        try:
            self.logps: Logps = np.load(manifest_path.parent / FILE, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{manifest_path.parent / FILE}: cannot be read ({error}); delete {manifest_path} to compute it again"
            ) from None

    def join(self, rows: Any) -> "RowsWithReference":
        """The rows with their pair's log-probabilities. Raises UserError when they belong to other pairs."""
        pairs = rows.distinct()
        wrong = None
        if self.logps.shape != (len(pairs), 2):
            wrong = f"has values of {len(self.logps):,} pairs, the mix has {len(pairs):,}"
        else:
            changed = [
                number for number, sha in self.manifest["probes"].items() if pair_sha256(pairs[int(number)]) != sha
            ]
            if changed:
                wrong = f"was computed on other pairs than the mix has (pair {changed[0]} differs)"
        if wrong:
            raise UserError(f"{self.path}: {wrong}; delete this manifest to compute the reference again")
        return RowsWithReference(rows, self.logps)


class RowsWithReference:
    """Rows of a mix, each with `ref_chosen_logps` and `ref_rejected_logps` of its pair."""

    def __init__(self, rows: Any, logps: Logps) -> None:
        self.rows, self.logps = rows, logps

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, indices: Any) -> Any:
        """As of the rows."""
        return self.rows.tokens(indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chosen, rejected = self.logps[self.rows.document(index)].tolist()
        return {**self.rows[index], "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
