"""The trainer's view of a mix: rows assembled on access from the memory-mapped token shards.

A mix has no tokens of its own. Beside its manifest, which lists the shards, it has

- `documents.npy`, a record a distinct document: the shard and the position of each column in it;
- `epoch-00000.npy`, `epoch-00001.npy`, ...: int32, the index of each row's first document and the end
  of the last `[rows + 1]`, then the documents of all rows by number.

Held-out rows have `eval-documents.npy` and `eval-epoch-00000.npy`.

Rows are stored in the order in which they are trained on: the sampler is sequential, so that the order is the
same for any number of ranks and after any resume. Each epoch has an order and a packing of its own.
"""

import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from post_training.core import manifest
from post_training.core.errors import DataError
from post_training.data.deal import Counts, row_tokens
from post_training.data.loss_mask import Ids, input_ids_and_labels
from post_training.data.shapes import VALUES

Row = dict[str, Ids]


def open_rows(path: Path, rows: int | None = None, part: str = "train") -> "Rows":
    """Open a mix without reading its tokens: in milliseconds at any size.

    Args:
        path: manifest of the mix.
        rows: rows to train on, from the first epoch on. None = all epochs that are there.
        part: `train`, or `eval` for the rows that are held out.

    Raises:
        DataError: when a file is missing or damaged, an epoch is not there yet, or a shard is not the one
            that the mix was made over.
    """
    return Rows(path, rows, part)


class Rows(Sequence[Row]):
    """Rows in training order, as views of the files where possible.

    A row is a dict of int32 arrays, the columns of its shape (`data/shapes`, with `input_ids` and `labels` for the
    masked column), and packed also `seq_lengths`, the tokens of each document. Survives a fork and pickling, which opens the files again.
    """

    def __init__(self, path: Path, rows: int | None = None, part: str = "train", *, distinct: bool = False) -> None:
        self._opened = (path, rows, part, distinct)
        facts = manifest.read(path)
        size = facts["rows_out"] if part == "train" else facts["held_out"]["rows"]
        if not size:
            raise DataError(f"{path}: the mix has no rows for {part}; set data.eval_fraction or a dataset's eval_split")
        self.packed = bool(facts["config"]["packing"]) and not distinct
        self._documents = _array(part_file(path, part, "documents.npy"), path)
        self.columns = columns_of(self._documents)
        if distinct:
            count = len(self._documents)
            self.rows_per_epoch = self._length = count
            self._epochs = [np.concatenate([np.arange(count + 1), np.arange(count)]).astype(np.int32)]
        else:
            self.rows_per_epoch = size
            self._epochs = _epochs(path, part, size, rows)
            self._length = rows or len(self._epochs) * self.rows_per_epoch
        self._shards = [_checked(path.parent / shard["path"], shard, path) for shard in facts["shards"]]
        self._maps: list[Ids | None] = [None] * len(self._shards)

    @property
    def documents(self) -> int:
        """Number of distinct documents (pairs) in the mix."""
        return len(self._documents)

    @property
    def column_names(self) -> list[str]:
        """Keys of a row."""
        return [
            *input_ids_and_labels(dict.fromkeys(self.columns, np.empty(0, np.int32))),
            *(["seq_lengths"] * self.packed),
        ]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        columns: list[list[Ids]] = [[] for _ in self.columns]
        for shard, *spans in self._documents[self.members(index)].tolist():
            tokens = self._maps[shard]
            if tokens is None:
                tokens = self._maps[shard] = map_shard(self._shards[shard])
            for place, parts in enumerate(columns):
                start = spans[2 * place]
                parts.append(tokens[start : start + spans[2 * place + 1]])
        if not self.packed:
            return input_ids_and_labels({name: parts[0] for name, parts in zip(self.columns, columns, strict=True)})
        row = input_ids_and_labels(
            {name: np.concatenate(parts) for name, parts in zip(self.columns, columns, strict=True)}
        )
        row["seq_lengths"] = np.array([len(part) for part in columns[0]], dtype=np.int32)
        return row

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(self._length))

    def document(self, index: int) -> int:
        """Number of the document, from 0 to `documents` - 1, that row `index` is; of rows that are not packed."""
        (number,) = self.members(index)
        return int(number)

    def sources(self, index: int) -> list[str]:
        """`<dataset> row <source row>` of each document in a row, for messages: the index keeps no names.

        A document is found by where its first column begins in its shard, whose folder is named by the dataset.
        """
        column, found = self.columns[0], []
        for record in self._documents[self.members(index)]:
            path = self._shards[int(record["shard"])]
            dataset = path.parent.name.rpartition("-")[0] or path.parent.name
            found.append(f"{dataset} row {_source_row(path, column, int(record[column]))}")
        return found

    def distinct(self) -> "Rows":
        """Every distinct document once, a row each, by its number."""
        path, _, part, _ = self._opened
        return Rows(path, part=part, distinct=True)

    def lengths(self) -> Ids:
        """Tokens that each distinct document takes up: of a pair, the prompt with the longer answer."""
        sizes = {name: self._documents[f"{name}_length"] for name in self.columns if name not in VALUES}
        prompt = sizes.pop("prompt_ids", 0)
        return np.asarray(prompt + np.max(list(sizes.values()), axis=0))

    def tokens(self, indices: Sequence[int]) -> Counts:
        """Tokens that the model computes for each of these rows, int64."""
        members = [self.members(index) for index in indices]
        records = self._documents[np.concatenate(members)]
        sizes = row_tokens({name: records[f"{name}_length"] for name in self.columns})
        starts = np.cumsum([0, *(len(numbers) for numbers in members[:-1])])
        return np.asarray(np.add.reduceat(sizes, starts))

    def members(self, index: int) -> Ids:
        """Numbers of a row's documents."""
        if not 0 <= index < self._length:
            raise IndexError(f"no row {index} of {self._length}")
        number, row = divmod(index, self.rows_per_epoch)
        epoch, first = self._epochs[number], self.rows_per_epoch + 1
        return epoch[first + epoch[row] : first + epoch[row + 1]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, self._opened


def _reopen(path: Path, rows: int | None, part: str, distinct: bool) -> Rows:
    return Rows(path, rows, part, distinct=distinct)


def document_type(columns: Iterable[str]) -> np.dtype[Any]:
    """Record of `documents.npy`: number of the shard; of each column its first int32 in that file, and how many."""
    fields = [("shard", "<i4")]
    for column in columns:
        fields += [(column, "<i8"), (f"{column}_length", "<i4")]
    return np.dtype(fields)


def columns_of(documents: npt.NDArray[Any]) -> list[str]:
    """The columns that records of `documents.npy` lead to."""
    return [name for name in documents.dtype.names or () if f"{name}_length" in (documents.dtype.names or ())]


def part_file(path: Path, part: str, name: str) -> Path:
    """A file of the index beside the mix's manifest, with a prefix for held-out rows."""
    return path.with_name(name if part == "train" else f"{part}-{name}")


def epoch_path(path: Path, number: int, part: str = "train") -> Path:
    """File of one epoch's order."""
    return part_file(path, part, f"epoch-{number:05d}.npy")


def _epochs(path: Path, part: str, size: int, rows: int | None) -> list[Ids]:
    """The orders of as many epochs as `rows` need, or of all that are there."""
    wanted = -(-rows // size) if rows else None
    found: list[Ids] = []
    while wanted is None or len(found) < wanted:
        file = epoch_path(path, len(found), part)
        if wanted is None and found and not file.is_file():
            break
        found.append(_array(file, path))
    return found


def _array(path: Path, made_with: Path) -> npt.NDArray[Any]:
    try:
        # A plain array over the map: a memmap costs a microsecond more at every access.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened ({error}); delete {made_with} to make it again") from None


def map_shard(shard: Path) -> Ids:
    """A shard as int32s. Mapped at its first use, so that opening costs nothing; all ranks share the pages."""
    with shard.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype=np.int32, count=len(mapped) // 4)


def _checked(path: Path, recorded: dict[str, Any], made_with: Path) -> Path:
    """The shard. Raises DataError if it is not the one that the index was made for."""
    try:
        entries = json.loads((path.parent / "manifest.json").read_text())["files"]
        found = {entry["path"]: entry["sha256"] for entry in entries}[path.name]
        size = path.stat().st_size
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error!r}), but {made_with} needs it; make it again") from None
    if (size, found) != (recorded["bytes"], recorded["sha256"]):
        raise DataError(f"{path}: is not the file that {made_with} was made over; delete that to make it again")
    return path


def _source_row(path: Path, column: str, position: int) -> int:
    """Number of the source row whose list begins at the int32 `position` of a shard."""
    content = pa.memory_map(str(path)).read_buffer()
    reader = pa.ipc.open_file(content)
    for batch in map(reader.get_batch, range(reader.num_record_batches)):
        lists = batch.column(column)
        starts = (lists.values.to_numpy().ctypes.data - content.address) // 4 + lists.offsets.to_numpy()[:-1]
        (at,) = np.nonzero(starts == position)
        if len(at):
            return int(batch.column("row")[int(at[-1])].as_py())
    raise LookupError(f"{path}: no row begins at {position}")
