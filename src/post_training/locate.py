"""Where models and datasets come from: local files or the Hugging Face Hub. Light; no network.

A path is local when something is there, or when it can only be meant so (`./`, `/`, `~`, a data
suffix, glob characters); then it must exist. Anything else must have the form of a Hub id.
"""

import glob
import os
import re
from pathlib import Path

from post_training.errors import ConfigError

DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".csv", ".tsv", ".parquet", ".arrow")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
)


def data_suffix(path: str | Path) -> str | None:
    """The suffix that names the reader of a file, or None."""
    name = str(path).lower()
    return next((suffix for suffix in DATA_SUFFIXES if name.endswith(suffix)), None)


def data_files(path: str, key: str) -> list[Path] | None:
    """The local files that a dataset path means, in order; None for a Hub id.

    Raises ConfigError for a local path without files and for what is neither.
    """
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        folder = Path(expanded)
        # A folder of `save_to_disk` holds its shards beside state.json; cache files are not data.
        found = sorted(p for p in folder.iterdir() if data_suffix(p) and not p.name.startswith(("cache-", ".")))
        found = [p for p in found if p.name not in ("state.json", "dataset_info.json", "dataset_dict.json")]
        if not found:
            raise ConfigError(key, f"{path}: a folder without data files ({', '.join(DATA_SUFFIXES)})")
        return found
    if any(character in path for character in "*?["):
        found = sorted(Path(p) for p in glob.glob(expanded, recursive=True) if os.path.isfile(p))
        if not found:
            raise ConfigError(key, f"{path}: no file matches")
        unreadable = [p for p in found if not data_suffix(p)]
        if unreadable:
            raise ConfigError(key, f"{unreadable[0]}: unknown kind of file, expected one of {', '.join(DATA_SUFFIXES)}")
        return found
    if os.path.isfile(expanded):
        if not data_suffix(expanded):
            raise ConfigError(key, f"{path}: unknown kind of file, expected one of {', '.join(DATA_SUFFIXES)}")
        return [Path(expanded)]
    if path.startswith(("/", "./", "../", "~")) or data_suffix(path):
        raise ConfigError(key, f"{path}: no such file or folder (relative to {os.getcwd()})")
    if not _HUB_ID.fullmatch(path):
        raise ConfigError(key, f"{path!r}: neither a local file nor a Hugging Face dataset id (org/name)")
    return None


def model_folder(path: str, key: str) -> Path | None:
    """The local folder that a model path means; None for a Hub id."""
    folder = Path(os.path.expanduser(path))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(key, f"{path}: a folder without config.json is not a model")
        return folder
    if path.startswith(("/", "./", "../", "~")) or path.count("/") > 1:
        raise ConfigError(key, f"{path}: no such folder (relative to {os.getcwd()})")
    if not _HUB_ID.fullmatch(path):
        raise ConfigError(key, f"{path!r}: neither a local folder nor a Hugging Face model id (org/name)")
    return None


def model_files(folder: Path) -> list[Path]:
    """The files of a local model that decide what it computes: everything but other weight formats and notes."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not any(part.startswith(".") for part in p.parts)]
    safetensors = any(p.suffix == ".safetensors" for p in files)
    unwanted = {
        ".md",
        ".txt",
        ".gguf",
        ".msgpack",
        ".h5",
        ".onnx",
        *({".bin", ".pt", ".pth"} if safetensors else set()),
    }
    return [p for p in files if p.suffix not in unwanted or p.name in TOKENIZER_FILES]


def in_hub_cache(kind: str, hub_id: str) -> bool:
    """Whether the Hugging Face cache of this machine holds any snapshot of a `model` or `dataset`."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    snapshots = Path(cache) / f"{kind}s--{hub_id.replace('/', '--')}" / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())
