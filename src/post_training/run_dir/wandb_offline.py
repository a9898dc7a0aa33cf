"""W&B's offline records in a run directory, and the command that sends them."""

import shlex
from pathlib import Path


def sync_command(directory: Path) -> str | None:
    """`wandb sync <folder> ...` for records that have not been sent yet, oldest attempt first; None where there are none.

    Each attempt of a run has a folder of its own; all have the run's id, under which W&B puts them together.
    """
    folders = sorted((directory / "logs" / "wandb").glob("offline-run-*"))
    unsent = [str(folder) for folder in folders if not any(folder.glob("*.wandb.synced"))]
    return shlex.join(["wandb", "sync", *unsent]) if unsent else None


def print_sync_command(directory: Path) -> None:
    """Print that command, at the end of a training: in the terminal, and in Slurm's output."""
    if command := sync_command(directory):
        print(f"W&B was offline; where there is internet: {command}", flush=True)
