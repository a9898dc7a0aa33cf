"""JSON Lines files that are appended to while a process may be killed. Light."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path, tail_bytes: int | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a file, or of its last `tail_bytes`; none when there is no file. A line that a kill cut off is left out.

    Only a line feed ends a line: texts may hold the other signs that `str.splitlines` takes for ends.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        if tail_bytes is not None:
            file.seek(max(0, path.stat().st_size - tail_bytes))
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            yield found


def append(path: Path, value: dict[str, Any]) -> None:
    """Add an object; not to the rest of a line that a kill cut off, which would spoil both."""
    with open(path, "a+b") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(value).encode() + b"\n")
