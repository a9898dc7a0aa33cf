"""The starting model: a Hub snapshot at a recorded commit, or the user's own folder, checked.

The only model stage that may use the network.
"""

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from post_training.core.adapters import CONFIG, is_adapter_folder
from post_training.core.errors import UserError, brief
from post_training.core.fingerprint import FileHashes
from post_training.core.hub import licence_of, refusal, set_environment
from post_training.core.task import Task

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""One of them is there where Transformers finds weights."""
# Files beside weights that were quantised by a program that does not say so in config.json.
_QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_WANTED = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md", "*.tiktoken")


def run(task: Task) -> None:
    """Fetch into `snapshot/`, or check the local folder; both end with a manifest that names the folder."""
    is_hub = "hub" in task.config
    folder, facts = fetch(task) if is_hub else check_local(task)
    check_loadable(folder)
    task.finish(
        folder=folder.name if is_hub else str(folder),
        trust_remote_code=task.runtime["trust_remote_code"],
        license=licence_of(folder / "README.md"),
        **facts,
    )


def planned_folder(task: Task) -> Path:
    """A local folder that a stage reads. Raises UserError when it is not as it was when the run was planned."""
    folder = Path(task.runtime["folder"]).expanduser().resolve()
    hashes = FileHashes(task.directory.parents[1] / ".file_hashes.json")
    for name, planned in task.config["sha256"]:
        path = folder / name
        if not path.is_file() or hashes(path) != planned:
            raise UserError(f"{path}: changed since the run was planned; start again to use it as it is now")
    return folder


def check_local(task: Task) -> tuple[Path, dict[str, Any]]:
    """The user's folder, not copied. Raises UserError as `planned_folder` does."""
    folder = planned_folder(task)
    files = [{"path": str(folder / name), "sha256": planned} for name, planned in task.config["sha256"]]
    return folder, {"files": files}


def fetch(task: Task) -> tuple[Path, dict[str, Any]]:
    """One commit of a Hub repository, offline from the cache of this machine. Raises UserError when it cannot be had."""
    name, revision = task.config["hub"]["name_or_path"], task.config["hub"]["revision"]
    set_environment(task.runtime["offline"])
    from huggingface_hub import HfApi, snapshot_download

    target = task.directory / "snapshot"
    remedy = "check model.name_or_path, model.revision and the network, or give a local folder"
    try:
        if task.runtime["offline"]:
            cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
            sha, files = cached.name, [str(p.relative_to(cached)) for p in sorted(cached.rglob("*")) if p.is_file()]
            _refuse_adapters(files, name, revision)
            copy_snapshot(cached, target, wanted_files(files, task.runtime["trust_remote_code"]))
        else:
            info = HfApi().model_info(name, revision=revision)
            sha, files = str(info.sha), [entry.rfilename for entry in info.siblings or []]
            _refuse_adapters(files, name, revision)
            wanted = wanted_files(files, task.runtime["trust_remote_code"])
            snapshot_download(name, revision=sha, local_dir=target, allow_patterns=wanted)
    except UserError:
        raise
    except Exception as error:  # the Hub client raises a kind for each cause; all are the source's or the network's
        if said := refusal(error, "model.name_or_path", revision):
            raise UserError(f"{name}@{revision}: {said}") from None
        problem = f"cannot be fetched from the Hugging Face Hub ({brief(error)})"
        raise UserError(f"{name}@{revision}: {problem}; {remedy}") from None
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return target, {"repository": name, "revision": revision, "revision_sha": sha}


def _refuse_adapters(files: list[str], name: str, revision: str) -> None:
    """Raise UserError for a repository of adapters alone: of which model they are, the plan must know before anything is fetched."""
    if CONFIG in files and "config.json" not in files:
        folder = name.rpartition("/")[2]
        at = f" --revision {revision}" if revision != "main" else ""
        remedy = f"`hf download {name}{at} --local-dir {folder}`, and name ./{folder}: they are merged into their model"
        raise UserError(f"{name}: holds adapters and no model; fetch them with {remedy}")


def wanted_files(files: list[str], trust_remote_code: bool) -> list[str]:
    """The files of a repository that are needed: one format of weights (safetensors if offered), configuration, tokenizer.

    Code is downloaded only when it may be run.
    """
    top = [file for file in files if "/" not in file]  # folders hold other formats (onnx/, original/)
    safetensors = [file for file in top if file.endswith(".safetensors")]
    # Some repositories have the same weights a second time, under names that Transformers does not read.
    safetensors = [file for file in safetensors if file.startswith(("model", "adapter_model"))] or safetensors
    weights = safetensors or [file for file in top if file.endswith(".bin") and file.startswith("pytorch_model")]
    dropped = "*.bin.index.json" if safetensors else "*.safetensors.index.json"
    others = [file for file in top if any(fnmatch(file, pattern) for pattern in _WANTED) and not fnmatch(file, dropped)]
    code = [file for file in files if file.endswith(".py")] if trust_remote_code else []
    return sorted({*weights, *others, *code})


def copy_snapshot(source: Path, target: Path, files: list[str]) -> None:
    """Hard links to the cache's files where possible, copies elsewhere."""
    for file in files:
        path = target / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        original = (source / file).resolve()
        try:
            os.link(original, path)
        except OSError:
            shutil.copy2(original, path)


def check_loadable(folder: Path) -> None:
    """Raise UserError for a folder that the first job that loads it, hours later, would fail on, or train wrongly."""
    _check_kind(folder)
    if not any((folder / name).is_file() for name in _WEIGHTS):
        others = [
            path.name for pattern in ("*.safetensors", "*.bin", "*.gguf", "*.pt*") for path in folder.glob(pattern)
        ]
        found = f", but {others[0]}" if others else ""
        expected = "Transformers reads model.safetensors, or model.safetensors.index.json and its shards; a model folder has config.json, weights and tokenizer"
        raise UserError(f"{folder}: has no weights of a known name{found}; {expected}")
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "tokenizer.json"):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
            raise UserError(
                f"{path}: is a pointer of Git LFS, not the file; get it with `git lfs pull`, or copy the folder again"
            )
    if not (folder / "tokenizer.json").is_file():
        if (folder / "tekken.json").is_file() and not (folder / "tokenizer.model").is_file():
            remedy = "take tokenizer.json and tokenizer_config.json from the model's conversion to Transformers, or from another model with this tokenizer"
            raise UserError(f"{folder}: has Mistral's tekken.json and no tokenizer.json; {remedy}")
        convert = f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
        command = f'python -c "from transformers import AutoTokenizer; {convert}"'
        raise UserError(f"{folder}: has no tokenizer.json (the fast tokenizer); make it once with {command}")


def _check_kind(folder: Path) -> None:
    """Raise UserError for a model that cannot be trained here: quantised, or not a decoder alone."""
    if is_adapter_folder(folder):
        remedy = "copy them into a folder of yours and name that: they are merged into their model"
        raise UserError(f"{folder}: holds adapters and no model; {remedy}")
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}/config.json: cannot be read ({error}); copy the folder again") from None
    quantised = config.get("quantization_config") or config.get("compression_config")
    quantised = quantised or next((name for name in _QUANTISED if (folder / name).is_file()), None)
    if quantised:
        kind = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else str(quantised)
        remedy = "name the model that it was made from, whose weights are not quantised"
        raise UserError(f"{folder}: its weights are quantised ({kind}), which cannot be trained; {remedy}")
    if config.get("is_encoder_decoder"):
        kind = config.get("model_type")
        raise UserError(f"{folder}: {kind} is an encoder with a decoder, expected a causal language model; name one")
    if (folder / CONFIG).is_file():
        remedy = "merge them (PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...)), or take them out"
        raise UserError(f"{folder}: holds LoRA adapters beside a model, and Transformers would load both; {remedy}")
