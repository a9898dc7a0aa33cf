"""A file's bytes behind its compression, once it is known to be what its suffix says."""

import gzip
import io
from pathlib import Path
from typing import Any

import zstandard

from post_training.core.errors import DataError

_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 17
# How files begin: the suffix that fits, and what to do about a file that has another.
_BEGINNINGS = {
    b"\x1f\x8b": (".gz", "gzip data; give it the suffix .gz"),
    b"\x28\xb5\x2f\xfd": (".zst", "Zstandard data; give it the suffix .zst"),
    b"PAR1": (".parquet", "a Parquet file; give it the suffix .parquet"),
    b"ARROW1": (".arrow", "an Arrow file; give it the suffix .arrow"),
    b"PK\x03\x04": ("", "a zip archive; unpack it"),
    b"BZh": ("", "bzip2 data; unpack it"),
    b"\xfd7zXZ": ("", "xz data; unpack it"),
    b"\xff\xfe": ("", "UTF-16 text; convert it to UTF-8, such as with iconv"),
    b"\xfe\xff": ("", "UTF-16 text; convert it to UTF-8, such as with iconv"),
    b"version https://git-lfs": ("", "a pointer of Git LFS and not the data; fetch it with `git lfs pull`"),
    b"<!DOCTYPE": ("", "a web page; fetch the file itself"),
    b"<html": ("", "a web page; fetch the file itself"),
}


class _Zstandard(io.RawIOBase):
    """The bytes of a .zst file, of all its frames; the library's own reader takes a cut-off file for a whole one."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            compressed = self._frame.unused_data or self._file.read(_CHUNK_BYTES)
            if self._frame.eof and compressed:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            elif not compressed:
                if not self._frame.eof:
                    raise EOFError("the file ends within a Zstandard frame")
                return 0
            self._pending = memoryview(self._frame.decompress(compressed))
        size = min(len(buffer), len(self._pending))
        buffer[:size], self._pending = self._pending[:size], self._pending[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def open_file(file: Path) -> Any:
    """The file's bytes behind its compression and its byte order mark."""
    name = file.name.lower()
    if name.endswith(".gz"):
        handle: Any = gzip.open(file, "rb")  # noqa: SIM115  (the caller closes it)
    elif name.endswith(".zst"):
        handle = io.BufferedReader(_Zstandard(file), _CHUNK_BYTES)
    else:
        handle = file.open("rb")
    if handle.peek(len(_BOM))[: len(_BOM)] == _BOM:
        handle.read(len(_BOM))
    return handle


def check_beginning(file: Path) -> None:
    """Refuse a file that is something else than its suffix says, where that can be told."""
    with file.open("rb") as handle:
        begun = handle.read(32)
    for beginning, (suffix, said) in _BEGINNINGS.items():
        if begun.startswith(beginning) and not (suffix and file.name.lower().endswith(suffix)):
            raise DataError(f"{file}: is {said}")
    if file.name.lower().endswith(".gz") and begun and not begun.startswith(b"\x1f\x8b"):
        raise DataError(f"{file}: is not gzip data; take the suffix .gz away, or fetch it again")
