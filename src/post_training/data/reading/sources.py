"""Files -> blocks of records, with the reader that the suffix names.

Nothing is guessed and nothing is dropped: a record that cannot be read comes out as a `Problem`, and a file that cannot
be read at all is a DataError with the place.
"""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import zstandard

from post_training.core.errors import DataError
from post_training.core.locate import data_suffix
from post_training.data.reading.compression import check_beginning
from post_training.data.reading.readers import READERS
from post_training.data.reading.records import Block

_UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException, UnicodeDecodeError)


def read_blocks(files: Iterable[Path]) -> Iterator[Block]:
    """The records of the files in blocks, in order."""
    for file in files:
        first = 0
        try:
            check_beginning(file)
            for size, data in READERS[data_suffix(file) or ""](file):
                yield Block(file, first, size, data)
                first += size
        except DataError:
            raise
        except _UNREADABLE as error:
            raise unreadable(file, first, error) from None


def unreadable(file: Path, rows: int, error: Exception) -> DataError:
    """What is said of a file that its reader gave up."""
    problem = " ".join(str(error).split())
    return DataError(
        f"{file}: after {rows:,} rows: cannot be read ({problem}); check that the file is whole, or fetch it again"
    )
