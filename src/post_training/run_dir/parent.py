"""The Snakemake above a job."""

import os
from pathlib import Path

SNAKEMAKE = "POST_TRAINING_SNAKEMAKE"
"""Process id of the Snakemake that started a job; set by the prefix of all shell commands."""


def snakemake_is_gone() -> str | None:
    """Reason to stop: the Snakemake that started this run, if one did, is gone and would not hear of its end.

    Killed with -9 it leaves its jobs running, and a user who starts it again means to resume from here.
    """
    if (pid := os.environ.get(SNAKEMAKE)) is None:
        return None
    try:
        alive = b"snakemake" in Path(f"/proc/{pid}/cmdline").read_bytes()  # empty for a zombie
    except OSError:
        alive = False
    return None if alive else f"snakemake (process {pid}), which started this run, is gone"
