"""What to say of a path in the configuration at which there is nothing."""

import os
import re
from pathlib import Path

from post_training.core.errors import brief, closest

_HUB = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?:datasets/)?([\w.-]+/[\w.-]+)(?:/.*)?")


def missing_path(path: str, what: str = "no such file or folder") -> str:
    """The problem with it, and what was perhaps meant: other names of the same folder, a shell variable, a path of Windows."""
    if (drive := re.match(r"([A-Za-z]):[\\/]+(.*)", path)) or "\\" in path:
        mounted = f"/mnt/{drive[1].lower()}/{drive[2]}".replace("\\", "/") if drive else "below /mnt"
        return f"{path}: a path of Windows; in WSL the file is {mounted}"
    if "$" in path or "%" in path:
        return f"{path}: {what}; variables of the shell are not looked up: write the path out, or ${{oc.env:NAME}}"
    if path != path.strip():
        return f"{path!r}: {what}; there is a space at its beginning or end, delete it"
    expanded = Path(path).expanduser()
    if "," in path and Path(path.partition(",")[0]).expanduser().exists():
        return f"{path}: {what}; several files are a list: [{', '.join(part.strip() for part in path.split(','))}]"
    try:
        beside = sorted(os.listdir(expanded.parent))[:1000]
    except OSError:
        gone = next((one for one in expanded.parents if not one.exists()), expanded.parent)
        return f"{path}: {what}; there is no folder {gone}{_from_here(path)}"
    meant = closest(expanded.name, beside, 0.75)
    return f"{path}: {what}{_from_here(path)}" + (f". Did you mean {meant!r}?" if meant else "")


def unreadable(path: str, error: Exception) -> str:
    """The problem with a file that could not be read: what the library says of it, or that there is none."""
    is_there = Path(path).expanduser().exists()
    return f"{path}: cannot be read ({brief(error)})" if is_there else missing_path(path, "no such file")


def hub_id_of(address: str) -> str | None:
    """`org/name` of a model's or a dataset's page on the Hugging Face Hub, or of `hf://datasets/org/name`."""
    found = _HUB.fullmatch(address)
    return found[1] if found else None


def _from_here(path: str) -> str:
    expanded = os.path.expanduser(path)
    return f" (= {expanded})" if expanded != path else "" if os.path.isabs(path) else f" (relative to {os.getcwd()})"
