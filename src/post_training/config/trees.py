"""Plain nested containers: copying, merging, dotted keys."""

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from post_training.config.schema import SHARED
from post_training.config.yaml_file import load_file
from post_training.core.errors import ConfigError

Tree = dict[str, Any]
INDEX = re.compile(r"^(?P<list>[\w.]+?)\[(?P<index>\d+)\](?P<rest>.*)$")


def read_config(path: str | Path) -> Tree:
    """The configuration in a YAML file."""
    return beside(load_file(path), Path(path).parent)


def beside(tree: Any, folder: Path) -> Any:
    """A configuration stored in that folder: files of an export's `provenance/` are found from any working directory."""
    if isinstance(tree, Mapping):
        return {key: beside(value, folder) for key, value in tree.items()}
    if isinstance(tree, list):
        return [beside(value, folder) for value in tree]
    is_there = isinstance(tree, str) and tree.startswith("provenance/") and (folder / tree).is_file()
    return str(folder / tree) if is_there else tree


def parse_dotted(dotted: Any) -> list[tuple[str, Any]]:
    """`"training.max_steps=3 run=a"`, or a list of such words, -> pairs, typed as YAML types them."""
    words = dotted.split() if isinstance(dotted, str) else list(dotted or [])
    pairs = []
    for word in words:
        key, separator, value = str(word).partition("=")
        if not separator:
            remedy = "for values with spaces use a list: set='[\"key=a b\"]'"
            raise ConfigError("set", f"expected key=value, found {word!r}; {remedy}")
        if not re.fullmatch(r"[A-Za-z_][\w.\[\]]*", key):
            raise ConfigError(
                "set",
                f"expected key=value, found {word!r}; a key looks like training.max_steps or data.datasets[0].rows",
            )
        if "$" in value:
            # Under Slurm the submitting shell would expand it and the job would run with another value.
            raise ConfigError(key, f"'$' in {value!r} would be expanded by the submitting shell; set it in the file")
        try:
            pairs.append((key, OmegaConf.to_container(OmegaConf.from_dotlist([f"v={value}"]))["v"]))  # type: ignore[index,call-overload]
        except Exception:
            remedy = "for values with spaces use a list: set='[\"key=[a, b]\"]'"
            raise ConfigError(key, f"found {value!r}, expected a value of YAML; {remedy}") from None
    return pairs


def check_finite(tree: Any, shown: str = "{}", key: str = "") -> None:
    """Raise ConfigError for a number that is NaN or infinite, which no key means and no manifest can hold."""
    if isinstance(tree, float) and not math.isfinite(tree):
        raise ConfigError(shown.format(key), f"found {tree}, expected a finite number")
    if isinstance(tree, dict):
        for name, value in tree.items():
            check_finite(value, shown, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            check_finite(value, shown, f"{key}[{index}]")


def apply_dotted(pairs: Iterable[tuple[str, Any]], file: Tree) -> Tree:
    """Edit list entries of the file layer in place; return the other overrides as a tree.

    `data.datasets[0].weight` edits the shared list, which a stage with a list of its own does not use;
    `dpo.data.datasets[0].weight` edits DPO's. Raises ConfigError for an index or a key that is not there.
    """
    override: Tree = {}
    for key, value in pairs:
        match = INDEX.match(key)
        if not match:
            put(override, key, value)
            continue
        path, index, rest = match["list"].split("."), int(match["index"]), match["rest"].lstrip(".")
        entries = get(file, path)
        if entries is None and path[0] not in SHARED:
            # The stage shares the list: it gets a copy of its own before that is edited.
            entries = plain(get(file, path[1:]))
            if entries is not None:
                put(file, match["list"], entries)
        if not isinstance(entries, list) or index >= len(entries):
            size = len(entries) if isinstance(entries, list) else 0
            raise ConfigError(key, f"the list {match['list']} has {size} entries, so index {index} does not exist")
        if not rest:
            entries[index] = value
        elif isinstance(entries[index], dict):
            put(entries[index], rest, value, shown=key)
        else:
            raise ConfigError(key, f"entry {index} is {entries[index]!r}, not a mapping")
    return override


def plain(tree: Any) -> Any:
    """A deep copy in plain containers; `'null'` from Snakemake's string-typed `--config` becomes None, YAML's date a text."""
    if isinstance(tree, Mapping):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    if isinstance(tree, datetime.date):
        return str(tree)
    return None if tree == "null" else tree


def copied(tree: Any) -> Any:
    """A deep copy of plain containers, several times faster than Python's own, which thousands of runs would notice."""
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


def merge_into(tree: Tree, other: Tree) -> None:
    """Merge mappings into one another, in place; any other value of `other` wins."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge_into(tree[key], value)
        else:
            tree[key] = value


def get(tree: Any, path: list[str], default: Any = None) -> Any:
    """The value at a path, or the default."""
    for part in path:
        if not isinstance(tree, dict) or part not in tree:
            return default
        tree = tree[part]
    return tree


def put(tree: Tree, dotted: str, value: Any, shown: str = "") -> None:
    """Set a dotted key, in place. Raises ConfigError, about the key `shown`, where a part of it is no mapping."""
    *parents, last = dotted.split(".")
    for part in parents:
        child = tree.get(part)
        if child is None:
            child = tree[part] = {}
        elif not isinstance(child, dict):
            raise ConfigError(shown or dotted, f"{part} is {child!r}, not a mapping; give all of it in the file")
        tree = child
    tree[last] = value
