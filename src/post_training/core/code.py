"""The code that made a result: commit of the workflow's checkout, uncommitted changes, and a hash of the package."""

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from post_training.core.fingerprint import file_sha256, write_atomically
from post_training.core.secrets import mask

DIFF = "code.diff"
"""Beside a manifest: the uncommitted changes of the checkout."""
_PACKAGE = Path(__file__).parents[1]
# The files that decide results, relative to the top of the checkout; a configuration beside it is recorded as such.
_CODE = ("src", "workflow", "Snakefile", "envs", "pyproject.toml", "profiles")
_LONGEST_BYTES = 1 << 20


def state(directory: Path) -> dict[str, Any] | None:
    """Commit of the workflow's own checkout and whether its code has uncommitted changes; None outside of git.

    The changes are written to `code.diff` in `directory`, a stage's, as a patch for `git apply`.
    """
    (directory / DIFF).unlink(missing_ok=True)
    try:
        _git("ls-files", "--error-unmatch", str(Path(__file__)))  # fails for a package installed below another checkout
        top, commit = _git("rev-parse", "--show-toplevel", "HEAD").split("\n")[:2]
        changed = _git("-C", top, "status", "--porcelain", "--untracked-files=all", "--", *_CODE).strip()
        if not changed:
            return {"commit": commit, "dirty": False}
        patch = (_git("-C", top, "diff", "HEAD", "--", *_CODE) + _new_files(top, changed)).encode()
    except (OSError, subprocess.CalledProcessError):
        return None
    text = mask(patch[:_LONGEST_BYTES].decode(errors="ignore"))
    write_atomically(directory / DIFF, text)
    file = {"path": DIFF, "bytes": len(text.encode()), "sha256": file_sha256(directory / DIFF)}
    if len(patch) > _LONGEST_BYTES:
        file["cut_from_bytes"] = len(patch)
    return {"commit": commit, "dirty": True, "diff": file}


@cache
def sha256() -> str:
    """sha256 (hex) over the package's own files: the same code gives the same, committed or not, in git or not."""
    found = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in (".py", ".jinja"):
            found.update(f"{path.relative_to(_PACKAGE)} {file_sha256(path)}\n".encode())
    return found.hexdigest()


def _new_files(top: str, changed: str) -> str:
    """Untracked files as a patch that creates them."""
    new = [line[3:] for line in changed.splitlines() if line.startswith("?? ")]
    # `git diff --no-index` exits with 1 when the two differ.
    return "".join(_git("-C", top, "diff", "--no-index", "--", os.devnull, name, check=False) for name in new[:200])


def _git(*words: str, check: bool = True) -> str:
    command = ["git", "-C", str(_PACKAGE), *words]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=check).stdout
