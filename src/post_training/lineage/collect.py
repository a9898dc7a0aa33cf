"""A stage and everything that it was made from, as plain values."""

import json
from pathlib import Path
from typing import Any

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.stages import STAGES
from post_training.run_dir import attempts

PROVENANCE = "provenance.json"
"""In an exported model: what `collect` found when it was made."""
_FOLDERS = {kind.folder for kind in STAGES.values() if kind.folder and not kind.folder.startswith("data/")}
Stages = dict[str, dict[str, Any]]


def collect(path: Path | str) -> dict[str, Any]:
    """The lineage of a run directory, a model, a manifest or any file of a stage.

    A directory with a finished export stands for the exported model. A model that was copied without what it was made
    from is told by its own `provenance.json`.

    Returns a dict with

    - `root`: key of the stage that was asked for;
    - `stages`: key -> stage, inputs before what is made from them. A key is the stage's directory below the output
      base, `data/mixed/sft-1a2b3c4d` or `sft-llama-1a2b3c4d/model`, or for a stage outside of it its own name;
    - `gpu_hours`: of all stages. Under Slurm failed and interrupted starts are included; elsewhere they are GPUs times
      `training_seconds` of each training, without what was trained in vain.

    A stage is its manifest (`stage`, `fingerprint`, `config`, `files` with `sha256`, `versions`, `git`, `seconds`,
    `rows_out`, ...) with

    - `directory`: where it lies, None when it is not on this machine; then, without a `provenance.json` that tells of
      it, the rest is missing but for `fingerprint`, `inputs` and `expected`;
    - `inputs`: name -> key; `expected`: name -> what was read, `fingerprint` and `content`;
    - `jobs`: its Slurm starts as in `segments.jsonl`; `gpu_hours`: of this stage alone.

    Raises UserError when nothing there belongs to a stage.
    """
    asked = Path(path).resolve()
    if not asked.exists():
        raise UserError(
            f"{path}: no such file or folder; give a run directory, a model, a manifest or a file of a stage"
        )
    told = _own_account(asked)
    found = find_manifest(asked)
    if found is None:
        if told is None:
            raise UserError(f"{path}: belongs to no stage; no {manifest.NAME} beside it or in a folder above")
        for key, stage in told["stages"].items():
            stage["directory"] = str(asked if asked.is_dir() else asked.parent) if key == told["root"] else None
        return told
    stages: Stages = {}
    root = _add(found, stages, told["stages"] if told else {})
    return {"root": root, "stages": stages, "gpu_hours": round(sum(s.get("gpu_hours", 0) for s in stages.values()), 4)}


def find_manifest(path: Path) -> Path | None:
    """The manifest of the stage that a file or directory belongs to."""
    if path.is_dir() and (path / "model" / manifest.NAME).is_file():
        return path / "model" / manifest.NAME
    for folder in (path, *path.parents) if path.is_dir() else path.parents:
        candidate = folder / manifest.NAME
        if candidate.is_file() and _is_manifest(candidate):
            return candidate
    return None


def key_of(directory: Path) -> str:
    """A stage's directory below the output base."""
    parts = directory.parts
    if "data" in parts[-3:-2]:
        return "/".join(parts[-3:])
    return "/".join(parts[-2:] if parts[-1] == "model" or (parts[-2:-1] and parts[-2] in _FOLDERS) else parts[-1:])


def gpu_hours(told: dict[str, Any], jobs: list[dict[str, Any]]) -> float:
    """Hours that GPUs were held for a stage: of its Slurm starts, else of the training itself."""
    if any("gpus" in job for job in jobs):
        return round(sum(job.get("gpus", 0) * attempts.seconds(job) for job in jobs) / 3600, 4)
    return round(told.get("gpus", 0) * (told.get("training_seconds") or 0) / 3600, 4)


def find_made_from(stage: dict[str, Any], folder: str) -> list[dict[str, Any]]:
    """Manifests below `<output base>/<folder>` of stages that a stage is an input of: evaluations, cards."""
    if stage["directory"] is None:
        return []
    directory = Path(stage["directory"])
    base = directory.parents[key_of(directory).count("/")]
    found = [manifest.read(path) for path in sorted((base / folder).glob(f"*/{manifest.NAME}")) if _is_manifest(path)]
    mine = stage.get("fingerprint")
    return [told for told in found if mine in [one.get("fingerprint") for one in told.get("inputs", {}).values()]]


def _add(path: Path, stages: Stages, account: Stages) -> str:
    """Add a stage after its inputs; returns its key."""
    told = manifest.read(path)
    if not _can_be_followed(told):
        raise UserError(f"{path}: was changed after it was written; restore it, or delete it to run the stage again")
    directory = path.parent
    key = key_of(directory)
    if key in stages and stages[key]["directory"] != str(directory):
        key = f"{key}#{told.get('fingerprint', '')[:8]}"
    if key in stages:
        return key
    inputs = {}
    for name, entry in told.get("inputs", {}).items():
        found = _input(directory, entry)
        inputs[name] = _add(found, stages, account) if found else _absent(entry, stages, account)
    jobs = attempts.lines(attempts.folder_of(directory))
    stages[key] = {
        **told,
        "directory": str(directory),
        "inputs": inputs,
        "expected": told.get("inputs", {}),
        "jobs": jobs,
        "gpu_hours": gpu_hours(told, jobs),
    }
    return key


def _input(directory: Path, entry: dict[str, Any]) -> Path | None:
    """An input's manifest: beside this stage first, so that a copied output base is followed within itself."""
    told = Path(entry["path"])
    key = key_of(directory)
    base = directory.parents[key.count("/")]
    places = [base / key_of(told.parent) / told.name]
    places += [parent / told for parent in directory.parents if not told.is_absolute()]
    found = [place for place in (*places, told) if place.is_file()]
    right = [place for place in found if manifest.read(place).get("fingerprint") == entry["fingerprint"]]
    return next((place.resolve() for place in (*right, *found)), None)


def _absent(entry: dict[str, Any], stages: Stages, account: Stages) -> str:
    """A stage that is not on this machine, as an account tells of it."""
    key = key_of(Path(entry["path"]).parent)
    if key in account:
        for other in account[key]["inputs"].values():
            _absent({"path": f"{other}/{manifest.NAME}"}, stages, account)
    stages.setdefault(
        key,
        {
            "stage": "unknown", "inputs": {}, "expected": {}, "jobs": [], "gpu_hours": 0.0, "files": [],
            "fingerprint": entry.get("fingerprint"), **account.get(key, {}), "directory": None,
        },
    )  # fmt: skip
    return key


def _own_account(path: Path) -> dict[str, Any] | None:
    """`provenance.json` of the model that a path belongs to."""
    for folder in (path, path / "model", path.parent):
        try:
            told = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if {"root", "stages"} <= told.keys() and told["root"] in told["stages"]:
            return dict(told)
    return None


def _is_manifest(path: Path) -> bool:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return True  # a damaged one of ours, which reading it will tell
    except OSError:
        return path.parent.joinpath(PROVENANCE).is_file()
    # One changed byte takes one of them away.
    return isinstance(told, dict) and len({"stage", "fingerprint", "inputs", "checksum"} & told.keys()) > 1


def _can_be_followed(told: dict[str, Any]) -> bool:
    """Whether a manifest has what leads to its files and its inputs."""
    named = [("fingerprint", told), ("stage", told)] + [("path", file) for file in told.get("files", [])]
    named += [(key, entry) for entry in told.get("inputs", {}).values() for key in ("path", "fingerprint")]
    return all(isinstance(entry.get(key), str) for key, entry in named)
