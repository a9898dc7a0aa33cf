"""The trainer's view of a mix: memory-mapped rows."""

from pathlib import Path

from datasets import Dataset

from post_training.errors import DataError


def open_rows(manifest: Path) -> Dataset:
    """The rows beside a mix's manifest, opened in milliseconds at any size; nothing is copied or cached."""
    path = manifest.parent / "rows.arrow"
    try:
        return Dataset.from_file(str(path))
    except Exception as error:  # datasets raises what Arrow and the system raise
        raise DataError(f"{path}: cannot be opened ({error}); delete {manifest} to make it again") from None
