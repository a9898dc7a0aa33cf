"""Makes the files of a model folder loadable by other programs. No torch at import."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from post_training.models.conversation import rendered, text_ids

CARRIED = ("*processor_config.json", "LICENSE*", "NOTICE*")
"""Files of a starting model that its export has, too."""
# Transformers 5 writes into tokenizer_config.json how this machine loaded the tokenizer.
_LEAKS = ("is_local", "local_files_only", "name_or_path")


def make_portable(folder: Path) -> None:
    """Make saved files loadable everywhere and readable by the group.

    Transformers 5 names a generic tokenizer `TokenizersBackend`, which version 4 and programs built on it cannot load;
    training switches `use_cache` off, and inference wants it on. Version 4 would also silently use the default for a
    `rope_theta` that it does not find.
    """
    edit_json(folder / "tokenizer_config.json", _portable_tokenizer)
    edit_json(folder / "config.json", _portable_config)
    edit_json(folder / "generation_config.json", lambda config: {k: v for k, v in config.items() if k[0] != "_"})
    set_permissions(folder)


def carry_over(start: Path, folder: Path, trust_remote_code: bool) -> list[str]:
    """Copy what a model needs beside weights and tokenizer from the folder that training started from, where it is not there already.

    That are the configurations of processors (images, sound), licences and notices, and code that comes with the model, where it is
    trusted. Returns the names.
    """
    patterns = (*CARRIED, *(["*.py"] if trust_remote_code else []))
    found = sorted({path.name for pattern in patterns for path in start.glob(pattern) if path.is_file()})
    missing = [name for name in found if not (folder / name).exists()]
    for name in missing:
        shutil.copyfile(start / name, folder / name)
    return missing


def _portable_config(config: dict[str, Any]) -> dict[str, Any]:
    """Version 5's names and 4's for the same values: version 5 reads either."""
    changed = {**config, "use_cache": True}
    if "dtype" in config:
        changed["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        changed["rope_theta"] = rope["rope_theta"]
        scaled = {key: value for key, value in rope.items() if key != "rope_theta"}
        changed["rope_scaling"] = scaled if rope.get("rope_type", "default") != "default" else None
    return changed


def _portable_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in _LEAKS}
    if kept.get("tokenizer_class") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    return kept


def set_permissions(folder: Path) -> None:
    """0644 for files and 0755 for directories, less the umask: safetensors writes 0600."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o755 if path.is_dir() else 0o644) & ~mask)


def edit_json(path: Path, change: Any) -> None:
    """Rewrite one JSON file in place, if it exists."""
    if path.is_file():
        content = change(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def cast_weights(folder: Path, dtype: str) -> None:
    """Store a folder's floating-point safetensors as `dtype` (`bfloat16`, ...), and record it in config.json."""
    import torch
    from safetensors.torch import load_file, save_file

    target = getattr(torch, dtype)
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        if any(tensor.is_floating_point() and tensor.dtype != target for tensor in tensors.values()):
            cast = {name: t.to(target) if t.is_floating_point() else t for name, t in tensors.items()}
            save_file(cast, path, metadata={"format": "pt"})
    edit_json(folder / "config.json", lambda config: _portable_config({**config, "dtype": dtype}))


def stop_tokens(tokenizer: Any, template_text: str) -> list[int]:
    """Ids that end an answer: the tokenizer's end token, and the one with which the template ends the assistant's turn.

    The latter is found by rendering, because a template is free text: the first control token after the answer.
    """
    answer = "stop-token-probe"
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]
    text = rendered(tokenizer, messages, template_text)
    after = text_ids(tokenizer, text.rsplit(answer, 1)[1])
    control = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    found = [tokenizer.eos_token_id, next((token for token in after if token in control), None)]
    return list(dict.fromkeys(token for token in found if token is not None))


def replace_folder(new: Path, target: Path) -> None:
    """Move a finished folder to its path; one that exists there already (a repeated step or export) is removed only then."""
    old = _moved_away(target) if target.exists() else None
    new.rename(target)
    if old:
        shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, or, where a file system keeps open files in their folder (NFS), what can be removed of it.

    It is moved away first: in place, a part of it would be left under its name.
    """
    shutil.rmtree(_moved_away(folder), ignore_errors=True)


def _moved_away(folder: Path) -> Path:
    if ".old." in folder.name:  # the rest of an earlier one
        return folder
    return folder.rename(folder.with_name(f".{folder.name}.old.{time.time_ns()}"))
