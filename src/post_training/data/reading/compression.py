"""Decompressed bytes of a file, and the check that it is what its suffix says."""

import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa

from post_training.core.errors import DataError

_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 17
# First bytes -> the suffix that fits them, and what such a file is with another suffix.
_BEGINNINGS = {
    b"\x1f\x8b": (".gz", "gzip data; give it the suffix .gz"),
    b"\x28\xb5\x2f\xfd": (".zst", "Zstandard data; give it the suffix .zst"),
    b"PAR1": (".parquet", "a Parquet file; give it the suffix .parquet"),
    b"ARROW1": (".arrow", "an Arrow file; give it the suffix .arrow"),
    b"PK\x03\x04": ("", "a zip archive, or a spreadsheet; unpack it, or save it as CSV"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("", "an old spreadsheet; save it as CSV"),
    b"%PDF": ("", "a PDF; its text must be rows first"),
    b"ORC": ("", "an ORC file; write it as Parquet"),
    b"FEA1": ("", "a Feather file of version 1; write it as Parquet"),
    b"SQLite format 3": ("", "a database of SQLite; write its rows as CSV"),
    b"BZh": ("", "bzip2 data; unpack it"),
    b"\xfd7zXZ": ("", "xz data; unpack it"),
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff", b"{\0", b"[\0", b"\0{", b"\0["), ("", "UTF-16 text; convert it to UTF-8, such as with iconv")),
    b"version https://git-lfs": ("", "a pointer of Git LFS and not the data; fetch it with `git lfs pull`"),
    **dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"), ("", "a web page; fetch the file itself")),
    b"<?xml": ("", "XML, as servers write errors; fetch the file itself, or write its rows as JSON Lines"),
}  # fmt: skip
_TAR, _TAR_AT = b"ustar", 257


def open_compressed(file: Path) -> Any:
    """The file's decompressed bytes without a byte order mark. A file that is cut off raises OSError or EOFError."""
    name = file.name.lower()
    if name.endswith(".gz"):
        handle: Any = gzip.open(file, "rb")  # noqa: SIM115  (the caller closes it)
    elif name.endswith(".zst"):
        handle = io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"), _CHUNK_BYTES)
    else:
        handle = file.open("rb")
    if handle.peek(len(_BOM))[: len(_BOM)] == _BOM:
        handle.read(len(_BOM))
    return handle


def check_beginning(file: Path) -> None:
    """Raise DataError for a file whose first bytes show that it is not what its suffix says."""
    name = file.name.lower()
    with file.open("rb") as handle:
        head = handle.read(_TAR_AT + len(_TAR))
    _check(head, name, file)
    if name.endswith(".gz") and head and not head.startswith(b"\x1f\x8b"):
        raise DataError(f"{file}: is not gzip data; take the suffix .gz away, or fetch it again")
    if name.endswith(".zst") and not head:
        raise DataError(f"{file}: is empty, without a Zstandard frame; fetch it again")
    if name.endswith((".gz", ".zst")):
        with open_compressed(file) as unpacked:
            _check(unpacked.read(_TAR_AT + len(_TAR)), name.rpartition(".")[0], file, packed=True)


def _check(head: bytes, name: str, file: Path, packed: bool = False) -> None:
    found = next((known for beginning, known in _BEGINNINGS.items() if head.startswith(beginning)), None)
    found = ("", "a tar archive; unpack it") if head[_TAR_AT:] == _TAR else found
    if found is None or (found[0] and name.endswith(found[0])):
        return
    suffix, what = found
    if packed and suffix:
        what = f"{what.partition(';')[0]}; unpack it first"
    raise DataError(f"{file}: {'what is packed in it ' if packed else ''}is {what}")
