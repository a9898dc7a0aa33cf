"""Where a row of the mix comes from: for error messages, so speed does not matter."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from post_training.data.view import Rows


def origins(rows: Rows, index: int) -> list[str]:
    """`<dataset> row <source row>` of each document in a training row.

    The index keeps no names. A document is found again by where its first column begins in its shard, and
    the shard's folder is named by the dataset.
    """
    found = []
    for record in rows.records(index):
        path = rows.shard(int(record["shard"]))
        place, column = int(record[rows.columns[0]]), rows.columns[0]
        found.append(
            f"{path.parent.name.rpartition('-')[0] or path.parent.name} row {_source_row(path, column, place)}"
        )
    return found


def _source_row(path: Path, column: str, place: int) -> int:
    """Number of the source row whose list begins at the int32 `place` of a shard."""
    whole = pa.memory_map(str(path)).read_buffer()
    reader = pa.ipc.open_file(whole)
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        lists = batch.column(column)
        starts = (lists.values.to_numpy().ctypes.data - whole.address) // 4 + lists.offsets.to_numpy()[:-1]
        (at,) = np.nonzero(starts == place)
        if len(at):
            return int(batch.column("row")[int(at[-1])].as_py())
    raise LookupError(f"{path}: no row begins at {place}")
