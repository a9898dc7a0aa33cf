"""Files that the workflow wrote beside its manifests; what is not there has nothing to tell. Light."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any] | None:
    """An object; None when there is no such file, or not a whole one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; a last line that a kill cut off is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found
