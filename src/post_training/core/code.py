"""Which code made a result: the commit of the workflow's checkout, what is changed in it, and a hash of the package. Light."""

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from post_training.core.fingerprint import file_sha256, write_atomically
from post_training.core.secrets import mask

DIFF = "code.diff"
"""Beside a manifest: what a checkout that was not clean had changed."""
_PACKAGE = Path(__file__).parents[1]
# What decides results, seen from the checkout's top; a configuration beside it is recorded as such.
_CODE = ("src", "workflow", "Snakefile", "envs", "pyproject.toml", "profiles")
_LONGEST_BYTES = 1 << 20


def state(directory: Path) -> dict[str, Any] | None:
    """Commit of the workflow's own checkout and whether its code has uncommitted changes; None outside of git.

    The changes themselves, as a patch that `git apply` takes, are written to `code.diff` in `directory`, a stage's.
    """
    (directory / DIFF).unlink(missing_ok=True)
    try:
        _git(
            "ls-files", "--error-unmatch", str(Path(__file__))
        )  # a package that is installed below somebody's checkout
        top = _git("rev-parse", "--show-toplevel").strip()
        commit = _git("rev-parse", "HEAD").strip()
        changed = _git("-C", top, "status", "--porcelain", "--untracked-files=all", "--", *_CODE).strip()
        if not changed:
            return {"commit": commit, "dirty": False}
        patch = _git("-C", top, "diff", "HEAD", "--", *_CODE) + _new_files(top, changed)
    except (OSError, subprocess.CalledProcessError):
        return None
    whole = patch.encode()
    text = mask(whole[:_LONGEST_BYTES].decode(errors="ignore"))
    write_atomically(directory / DIFF, text)
    file = {"path": DIFF, "bytes": len(text.encode()), "sha256": file_sha256(directory / DIFF)}
    return {
        "commit": commit,
        "dirty": True,
        "diff": file | ({"cut_from_bytes": len(whole)} if len(whole) > _LONGEST_BYTES else {}),
    }


@cache
def sha256() -> str:
    """sha256 (hex) over the package's own files: the same code gives the same, committed or not, in git or not."""
    found = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in (".py", ".jinja"):
            found.update(f"{path.relative_to(_PACKAGE)} {file_sha256(path)}\n".encode())
    return found.hexdigest()


def _new_files(top: str, changed: str) -> str:
    """Files that git does not know yet, as a patch that makes them."""
    new = [line[3:] for line in changed.splitlines() if line.startswith("?? ")]
    # It says with 1 that the two differ.
    return "".join(
        subprocess.run(
            ["git", "-C", top, "diff", "--no-index", "--", os.devnull, name],
            capture_output=True,
            text=True,
            errors="replace",
        ).stdout
        for name in new[:200]
    )


def _git(*words: str) -> str:
    command = ["git", "-C", str(_PACKAGE), *words]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout
