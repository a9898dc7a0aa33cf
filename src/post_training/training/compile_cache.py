"""Compile caches on the node's own disk.

PyTorch builds an extension under a file named `lock`, which it creates and removes. A rank killed while it builds
leaves the file, and every later one waits for it without end and without a word (torch's FileBaton).
"""

import contextlib
import os
import time
from pathlib import Path

# Longer than a build takes. A cache in a home directory is perhaps shared with nodes whose processes cannot be seen here.
_BUILD_SECONDS = 600


def remove_stale_locks() -> None:
    """Remove build locks that no process of this node holds. Called by a node's first rank, before torch."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    own = os.environ.get("TORCH_EXTENSIONS_DIR")
    is_of_node = own is not None and "SLURM_JOB_ID" in os.environ
    for lock in Path(own or Path.home() / ".cache" / "torch_extensions").glob("**/lock"):
        with contextlib.suppress(OSError):
            if not _is_open(lock) and (is_of_node or time.time() - lock.stat().st_mtime > _BUILD_SECONDS):
                lock.unlink()


def _is_open(path: Path) -> bool:
    """Whether a process of this user has the file open, as a builder has its lock."""
    with contextlib.suppress(OSError):
        wanted = path.stat()
        for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                found = descriptor.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False
