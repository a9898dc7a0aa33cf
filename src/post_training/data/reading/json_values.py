"""The values of a JSON file, one after the other as bytes: a file of any size in little memory.

Only brackets and strings are scanned; values are parsed later, in workers, so an invalid one costs one row and not the file.
(Streaming parsers such as ijson give parsed objects: in one process, up to the first invalid token, and without repeated keys.)
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from post_training.core.errors import DataError

_CHUNK_BYTES = 4 << 20
_LONGEST_BYTES = 256 << 20
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}]', re.DOTALL)


def split_values(handle: IO[bytes] | Any, begun: bytes, file: Path) -> Iterator[bytes]:
    """The members of an array that is the file, or the values that follow each other in it.

    Args:
        handle: the file, of which `begun` has been read already.
        begun: its first bytes, without a byte order mark.
        file: its name, for messages.

    Raises DataError with the line where the file is neither.
    """
    array = begun.lstrip()[:1] == b"["
    window, line = begun, 1  # `line` is that of the window's first byte
    # Positions in the window: next to scan, end of the last value, start of this value.
    scan = end = begun.index(b"[") + 1 if array else 0
    start = depth = count = 0

    def damaged(position: int, what: str) -> DataError:
        place = line + window.count(b"\n", 0, position)
        return DataError(f"{file}: line {place:,}: {what}; fix the file, fetch it again, or write it as JSON Lines")

    def between(stop: int, more: bool) -> list[bytes]:
        """Values without brackets in the window from `end` to `stop`, where another value follows or the array ends."""
        gap = window[end:stop].strip()
        commas = b"," if array and count and more else b""
        if gap == commas or (not gap and not array):
            return []
        try:
            before, after = array and count > 0, array and more
            if (before and gap[:1] != b",") or (after and gap[-1:] != b",") or not array:
                raise ValueError
            return [orjson.dumps(value) for value in orjson.loads(b"[%b]" % gap[before : len(gap) - after])]
        except ValueError:
            found = f"is {gap[:40]!r}, which is not JSON" if gap else "is no comma"
            raise damaged(end, f"between two values {found}") from None

    while True:
        for token in _TOKEN.finditer(window, scan):
            first, scan = token.span()
            kind = window[first]
            if kind == 0x22:  # a quotation mark
                if scan - first == 1:  # of a string that continues beyond the window
                    scan = first
                    break
            elif kind in b"[{":
                if not depth:
                    yield from between(first, more=True)
                    start = first
                depth += 1
            else:
                depth -= 1
                if depth < 0:
                    break
                if not depth:
                    yield window[start:scan]
                    end, count = scan, count + 1
        else:
            scan = len(window)
        if depth < 0:
            break
        kept = start if depth else end
        line += window.count(b"\n", 0, kept)
        window, scan, start, end = window[kept:], scan - kept, 0, 0
        if len(window) > _LONGEST_BYTES:
            raise damaged(0, f"a value of more than {_LONGEST_BYTES >> 20} MiB, or a quotation mark too many before it")
        chunk = handle.read(_CHUNK_BYTES)
        if not chunk:
            break
        window += chunk
    if depth > 0 or (array and depth == 0):
        what = f"the value that begins here (number {count + 1:,})" if depth else f"the array, after {count:,} values,"
        raise damaged(0, f"{what} has no end: the file is cut off or lacks a quotation mark")
    if depth < 0 and not array:
        raise damaged(scan, "a closing bracket that nothing opened")
    yield from between(scan - 1 if array else len(window), more=False)
    rest = (window[scan:] + handle.read(_CHUNK_BYTES)).strip() if array else b""
    if rest:
        raise damaged(scan, f"after the end of the array is {rest[:40]!r}")
