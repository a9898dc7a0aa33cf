"""Where models and datasets come from: local files or the Hugging Face Hub. No network.

A path is local when something is there, or when it can only be meant so (`./`, `/`, `~`, a data
suffix, glob characters); then it must exist. Anything else must have the form of a Hub id.
"""

import glob
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from post_training.core.errors import ConfigError, did_you_mean, require
from post_training.core.fingerprint import FileHashes, digest
from post_training.core.paths import hub_id_of, missing_path

_TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
DATA_SUFFIXES = (*(text + packed for text in _TEXT_SUFFIXES for packed in ("", ".gz", ".zst")), ".parquet", ".arrow")
# Suffix of other files -> what to do with one.
_OTHER_KINDS = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".tar.gz", ".tar.zst", ".7z", ".bz2", ".xz"), "unpack it"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the spreadsheet as CSV"),
    **dict.fromkeys((".ndjson", ".jsonlines", ".jl", ".ndjson.gz", ".jsonlines.gz"), "give it the suffix .jsonl (or .jsonl.gz)"),
    **dict.fromkeys((".feather", ".ipc"), "give it the suffix .arrow"),
    ".pq": "give it the suffix .parquet",
}  # fmt: skip
_SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test", "validation": "validation", "valid": "validation",
    "val": "validation", "dev": "validation", "eval": "test",
}  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip
# Of a model's folder: notes, and weights in formats that are not loaded.
_NOT_MODEL = (".md", ".txt", ".gguf", ".msgpack", ".h5", ".onnx")
_MADE_FROM = "name the model that it was made from"
_NO_MODEL = "a folder without config.json is not a model"
_SPLITS = "dataset_dict.json"
_OF_DATASETS = (_SPLITS, "state.json", "dataset_info.json", "dataset_infos.json")
_ONLY_LOCAL = ("/", "./", "../", "~")
_SHELL = re.compile(r"[\\$%]|^[A-Za-z]:/")
_SPLIT = re.compile(r"([\w.-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


@dataclass(frozen=True)
class Slice:
    """Rows `[start:stop]` of a dataset, each bound a number of rows (from the end where negative) or a percentage."""

    start: str | None = None
    stop: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """From `[100:200]`, `[:10%]`, `[-50:]`."""
        start, _, stop = text.strip("[]").partition(":")
        return cls(start or None, stop or None)

    @property
    def needs_total(self) -> bool:
        """Whether the number of all rows decides which they are."""
        return any(bound and ("%" in bound or "-" in bound) for bound in (self.start, self.stop))

    def bounds(self, total: int | None) -> tuple[int, int]:
        """First row and the row after the last, of `total` rows; None = not known, and not needed."""

        def row(bound: str | None, otherwise: int) -> int:
            if bound is None:
                return otherwise
            if total is None:
                return int(bound)
            value = round(total * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
            return max(0, min(total, value + total if value < 0 else value))

        return row(self.start, 0), row(self.stop, 1 << 62 if total is None else total)


def parse_split(split: str, key: str) -> tuple[str, str | None]:
    """`train[:10%]` -> its name, and the text of its slice or None. Raises ConfigError for anything else."""
    found = _SPLIT.fullmatch(split)
    if not found:
        problem = f"found {split!r}, expected a name, or one with a slice such as train[:10%] or train[100:200]"
        raise ConfigError(key, problem)
    return found[1], split[len(found[1]) :] or None


def data_suffix(path: str | Path) -> str | None:
    """The suffix that names the reader of a file, or None."""
    name = str(path).lower()
    return next((suffix for suffix in DATA_SUFFIXES if name.endswith(suffix)), None)


def data_files(path: Any, key: str, split: str = "train", split_key: str | None = None) -> list[Path] | None:
    """The local files that a dataset's path (or list of paths) means, in order; None for a Hub id.

    Args:
        path: as configured.
        key: the configuration key that errors name, `...path`.
        split: as configured; it chooses a folder of a saved DatasetDict, and is `train` for any other local files.
        split_key: the key that errors of the split name; None = `...split` beside the path.

    Raises ConfigError for a local path without files, for files that cannot be read and for what is neither.
    """
    split_key = split_key or f"{key.removesuffix('.path')}.split"
    if not isinstance(path, list):
        return _files_of(path, key, split, split_key)
    found: list[Path] = []
    for index, one in enumerate(path):
        files = _files_of(one, f"{key}[{index}]", split, split_key)
        if files is None:
            raise ConfigError(f"{key}[{index}]", f"{one!r}: not a local file; a Hugging Face dataset is one of its own")
        found += files
    seen: set[Path] = set()
    twice = next((file for file in found if file in seen or seen.add(file)), None)  # type: ignore[func-returns-value]
    require(bool(found) and twice is None, key, f"{twice}: named twice" if twice else "an empty list; give a file")
    return found


def _files_of(path: Any, key: str, split: str, split_key: str) -> list[Path] | None:
    require(isinstance(path, str), key, f"found {path!r}, expected text or a list of texts")
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        found = _folder_files(Path(expanded), path, key, split, split_key)
    elif any(character in path for character in "*?[") and not os.path.exists(expanded):
        found = sorted(Path(p) for p in glob.glob(expanded, recursive=True) if os.path.isfile(p))
        if "**" in path:  # which follows links to folders, in circles too
            found = list({file.resolve(): file for file in reversed(found)}.values())[::-1]
        require(bool(found), key, f"{path}: no file matches")
    elif os.path.isfile(expanded):
        found = [Path(expanded)]
    elif "://" in path:
        remedy = f"write {named}" if (named := hub_id_of(path)) else "fetch it and name the file"
        raise ConfigError(key, f"{path}: is an address, expected a file or a dataset on the Hugging Face Hub; {remedy}")
    elif path.startswith(_ONLY_LOCAL) or data_suffix(path.strip()) or _SHELL.search(path):
        problem = f"{path}: not a regular file" if os.path.lexists(expanded) else missing_path(path)
        raise ConfigError(key, problem)
    else:
        hub_id = _HUB_ID.fullmatch(path)
        require(bool(hub_id), key, f"{path!r}: neither a local file nor a Hugging Face dataset id (org/name)")
        return None
    name, _ = parse_split(split, split_key)
    problem = f"found {split!r}, but local files are one split, train; name the files of {name} in path ({path})"
    require(name == "train" or (Path(expanded) / _SPLITS).is_file(), split_key, problem)
    for file in found:
        other = next((remedy for end, remedy in _OTHER_KINDS.items() if str(file).lower().endswith(end)), None)
        expected = f"; {other}" if other else f", expected one of {', '.join(DATA_SUFFIXES)}"
        require(bool(data_suffix(file)), key, f"{file}: unknown kind of file{expected}")
        require(file.is_file(), key, f"{file}: not a regular file; remove it, or name the files")
        require(os.access(file, os.R_OK), key, f"{file}: you may not read it; change its permissions")
    return found


def _folder_files(folder: Path, path: str, key: str, split: str, split_key: str) -> list[Path]:
    """Files of a folder that `save_to_disk` wrote, or data files that somebody put there."""
    if (folder / _SPLITS).is_file():
        splits = _listed(folder / _SPLITS, "splits", str, key)
        name, _ = parse_split(split, split_key)
        require(name in splits, split_key, f"{path} has no split {name!r}. {did_you_mean(name, splits)}")
        return _saved_files(folder / name, key)
    if (folder / "state.json").is_file():
        return _saved_files(folder, key)
    found = [p for p in sorted(folder.iterdir()) if data_suffix(p) and not p.name.startswith(("cache-", "."))]
    found = [p for p in found if p.name not in _OF_DATASETS]
    if not found:
        below = (p for p in sorted(folder.rglob("[!.]*")) if p.parent != folder)
        suffix = next(filter(None, map(data_suffix, below)), ".jsonl")
        deeper = f"a glob such as {path}/**/*{suffix} looks deeper"
        raise ConfigError(key, f"{path}: a folder without data files ({', '.join(DATA_SUFFIXES)}); {deeper}")
    formats: dict[str, list[str]] = {}
    for name, suffix in ((p.name, str(data_suffix(p))) for p in found):
        formats.setdefault(name[: -len(suffix)], []).append(suffix)
    stem, twice = next(((stem, some) for stem, some in formats.items() if len(some) > 1), ("", []))
    problem = (
        f"{path}: holds {stem} in several formats ({', '.join(twice)}), and rows that are in both would count twice"
    )
    require(not twice, key, f"{problem}; name those of one, such as {path}/*{''.join(twice[:1])}")
    splits = sorted(
        {_SPLIT_NAMES[word] for p in found if (word := re.split(r"[-_.]", p.name.lower())[0]) in _SPLIT_NAMES}
    )
    problem = f"{path}: holds files of several splits ({', '.join(splits)}); name those of one, such as with a glob"
    require(len(splits) <= 1, key, problem)
    return found


def _saved_files(folder: Path, key: str) -> list[Path]:
    """The shards that a folder of `save_to_disk` lists, all of them there."""
    state = json_object(folder / "state.json", key)
    indexed = state.get("_indices_data_files") or state.get("_indices_files")
    remedy = "call flatten_indices() and save it again"
    require(not indexed, key, f"{folder}: was saved with an index over its rows; {remedy}")
    listed = _listed(folder / "state.json", "_data_files", dict, key)
    found = [folder / str(entry.get("filename") or "?") for entry in listed]
    missing = next((file.name for file in found if not file.is_file()), None if found else "a data file")
    require(missing is None, key, f"{folder}: {missing} is missing; copy the folder again")
    return found


def _listed(file: Path, name: str, kind: type, key: str) -> list[Any]:
    """The list of that name in a JSON file."""
    found = json_object(file, key).get(name)
    good = isinstance(found, list) and all(isinstance(one, kind) for one in found)
    require(good, key, f"{file}: does not list {name}; copy the folder again")
    assert isinstance(found, list)
    return found


def json_object(file: Path, key: str) -> dict[str, Any]:
    """The object in a JSON file of a folder that somebody gives. Raises ConfigError for `key`."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(key, f"{file}: cannot be read ({error}); copy the folder again") from None


def model_folder(path: str, key: str) -> Path | None:
    """The local folder that a model path means, of a model or of adapters alone; None for a Hub id.

    Raises ConfigError for a folder without a model, and for what is neither.
    """
    require(bool(path.strip()), key, "is empty; give a folder or the id of a model on the Hugging Face Hub")
    folder = Path(os.path.expanduser(path))
    if folder.is_dir():
        known = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
        gguf = next(folder.glob("*.gguf"), None)
        what = f"holds {gguf.name}, which is made for inference; {_MADE_FROM}" if gguf else _NO_MODEL
        require(known, key, f"{path}: {what}")
        return folder
    problem = f"{path}: a file; name the folder of a model, with config.json, weights and tokenizer"
    require(not folder.is_file(), key, problem)
    named = hub_id_of(path) or (path.rstrip("/") if _HUB_ID.fullmatch(path.rstrip("/")) else None)
    require(named in (path, None), key, f"{path}: no such folder; the model on the Hugging Face Hub is {named}")
    require(not path.lower().endswith(".gguf"), key, f"{path}: a GGUF file is made for inference; {_MADE_FROM}")
    only_local = path.startswith(_ONLY_LOCAL) or path.count("/") > 1 or _SHELL.search(path)
    require(not only_local, key, missing_path(path, "no such folder"))
    revision = path.partition("@")[2]
    own_key = f"; the revision is a key of its own: {key.rpartition('.')[0]}.revision={revision}"
    problem = f"{path!r}: neither a local folder nor a Hugging Face model id (org/name){own_key if revision else ''}"
    require(bool(_HUB_ID.fullmatch(path)), key, problem)
    return None


def model_files(folder: Path) -> list[Path]:
    """The files of a local model that decide what it computes: everything but other weight formats and notes."""
    files = files_below(folder)
    safetensors = any(p.suffix == ".safetensors" for p in files)
    unwanted = (*_NOT_MODEL, *((".bin", ".pt", ".pth") if safetensors else ()))
    return [p for p in files if p.suffix not in unwanted or p.name in TOKENIZER_FILES]


def folder_sha256(folder: Path, hashes: FileHashes) -> str:
    """sha256 (hex) over names and contents of `files_below` a folder."""
    return digest([[str(path.relative_to(folder)), hashes(path)] for path in files_below(folder)])


def files_below(folder: Path) -> list[Path]:
    """Every file of a folder that is not hidden in it, in order; what Python has compiled does not count.

    Where the folder itself lies does not matter: below `..`, or below a hidden one as the Hub's cache often is.
    """
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def in_hub_cache(kind: str, hub_id: str) -> bool:
    """Whether the Hugging Face cache of this machine holds any snapshot of a `model`, `dataset` or `kernel`."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    snapshots = Path(cache) / f"{kind}s--{hub_id.replace('/', '--')}" / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())
