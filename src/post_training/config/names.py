"""Names of datasets and files in results."""

from pathlib import Path
from typing import Any

from post_training.core.errors import require
from post_training.core.fingerprint import is_safe_name, slug
from post_training.core.locate import parse_split


def dataset_name(entry: dict[str, Any], key: str) -> str:
    """The dataset's name, given or made from its path. Raises ConfigError when it cannot be a file name."""
    path = next(iter(entry["path"]), "none") if isinstance(entry["path"], list) else entry["path"]
    name = entry["name"] or slug(Path(str(path)).name.split(".")[0])
    require(is_safe_name(name), f"{key}.name", f"found {name!r}; use letters, digits, '.', '_' and '-' only")
    return str(name)


def recorded_as(path: str | list[str], split: str = "train") -> str:
    """The key of `recorded_files` for a configured path or list of them; of a saved DatasetDict each split is one."""
    name = parse_split(split, "split")[0]
    return (path if isinstance(path, str) else ", ".join(path)) + (f" ({name})" if name != "train" else "")
