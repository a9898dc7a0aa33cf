"""Compile caches on the node's own disk.

PyTorch builds an extension under a file named `lock`, which it creates and removes. A rank killed while it builds
leaves the file, and every later one waits for it without end and without a word (torch's FileBaton).
"""

import contextlib
import os
from pathlib import Path


def remove_stale_locks() -> None:
    """Remove build locks that no process of this node holds. Called by a node's first rank, before torch."""
    folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    if not folder or "SLURM_JOB_ID" not in os.environ or os.environ.get("LOCAL_RANK", "0") != "0":
        return  # a cache that other nodes may share shows nothing of their processes
    for lock in Path(folder).glob("**/lock"):
        if not _is_open(lock):
            with contextlib.suppress(OSError):
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
