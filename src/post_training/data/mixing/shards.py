"""One tokenised dataset as the mix sees it: where each row's tokens are in the shards, without reading them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from post_training.core import manifest
from post_training.core.errors import DataError
from post_training.data import shapes
from post_training.data.loss_mask import Ids
from post_training.data.view import document_type, map_shard

Indices = npt.NDArray[np.int64]


@dataclass
class Tokenized:
    """One tokenised dataset, memory-mapped."""

    name: str
    files: list[dict[str, Any]]
    """Its shards: `path`, absolute, `bytes` and `sha256`."""
    first_shard: int
    """Number of the first of them among those of the mix."""
    documents: npt.NDArray[Any]
    """A record a row, of `view.document_type`."""
    numbers: Indices
    """A number that no other row of the dataset has: the source row's, and which of its examples it is."""
    lengths: Indices
    """Tokens that each row takes up: of a pair, the prompt with the longer answer."""
    tokens: Indices
    """All tokens of each row."""
    trained: Indices
    """Tokens of each row that are trained on."""

    def values(self, records: npt.NDArray[Any], column: str) -> Iterator[Ids]:
        """One column of some documents, int32 each: views of the files."""
        fields = ("shard", column, f"{column}_length")
        maps: dict[int, Ids] = {}
        for shard, start, length in zip(*(records[name].tolist() for name in fields), strict=True):
            if shard not in maps:
                maps[shard] = map_shard(self.files[shard - self.first_shard]["path"])
            yield maps[shard][start : start + length]

    @classmethod
    def open(cls, name: str, manifest_path: Path, shape: str, first_shard: int) -> "Tokenized":
        """Open all shards; they are numbered from `first_shard` on."""
        files, parts = [], []
        shards = [entry for entry in manifest.read(manifest_path)["files"] if entry["path"].endswith(".arrow")]
        for number, entry in enumerate(shards, first_shard):
            path = manifest_path.parent / entry["path"]
            try:
                mapped = pa.memory_map(str(path))
                content = mapped.read_buffer(mapped.size())
                reader = pa.ipc.open_file(content)
                batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{path}: cannot be read ({error}); delete {manifest_path} to make it again") from None
            files.append({"path": path.absolute(), "bytes": entry["bytes"], "sha256": entry["sha256"]})
            parts += [_rows(batch, shapes.load(shape), number, content.address) for batch in batches]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return cls(name, files, first_shard, *columns)


def leave_out_unused(datasets: Collection[Tokenized], shape: str) -> None:
    """Take out the optional columns of the shape of which no row of any of them has a value."""
    found = [dataset.documents for dataset in datasets]
    own = shapes.load(shape)
    unused = [name for name in shapes.optional(own) if not any(one[f"{name}_length"].any() for one in found)]
    kind = document_type(name for name in shapes.columns(own) if name not in unused)
    for dataset, documents in zip(datasets, found, strict=True):
        dataset.documents = documents[list(kind.names or ())].astype(kind)


def _rows(batch: pa.RecordBatch, shape: ModuleType, shard: int, address: int) -> tuple[npt.NDArray[Any], ...]:
    """Documents, numbers, lengths, tokens and trained tokens of a record batch, whose file is mapped at `address`."""
    documents = np.zeros(batch.num_rows, dtype=document_type(shapes.columns(shape)))
    documents["shard"] = shard
    for column in [name for name in shapes.columns(shape) if name in batch.schema.names]:
        lists = batch.column(column)
        offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy()
        # Arrow aligns buffers to 8 bytes or more, so a list starts at a whole int32 of the file.
        documents[column] = (values.ctypes.data - address) // 4 + offsets[:-1]
        documents[f"{column}_length"] = np.diff(offsets)
    numbers = batch.column("row").to_numpy() + (batch.column("part").to_numpy().astype(np.int64) << 40)
    return documents, numbers, shape.lengths(batch), *shape.token_counts(batch)
