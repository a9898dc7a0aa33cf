"""JSON Lines files that are appended to while a process may be killed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from post_training.core.fingerprint import naming


def read(path: Path, tail_bytes: int | None = None) -> Iterator[dict[str, Any]]:
    """Each object of a file, or of its last `tail_bytes`; none where there is no file. A line that was cut off is left out.

    Only a line feed ends a line: texts may hold the other characters at which `str.splitlines` splits.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        if tail_bytes is not None:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tail_bytes))
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            yield found


def append(path: Path, value: dict[str, Any]) -> None:
    """Add an object on a line of its own, also after a line that a kill cut off."""
    with naming(path), open(path, "a+b") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(value).encode() + b"\n")
