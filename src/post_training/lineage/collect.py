"""A stage and everything that it was made from, as plain values."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.stages import STAGES
from post_training.run_dir import attempts

PROVENANCE = "provenance.json"
"""In an exported model: what `collect` found when it was made."""
_FOLDERS = {kind.folder for kind in STAGES.values() if kind.folder and not kind.folder.startswith("data/")}


class Stage(manifest.Facts, total=False):
    """A stage in a lineage: its manifest, and where it is.

    Of a stage that is not on this machine and in no `provenance.json`, only `fingerprint`, `inputs` and `expected` are
    known.
    """

    directory: str | None
    """None when it is not on this machine."""
    inputs: dict[str, str]
    """Name -> key."""
    expected: dict[str, manifest.Input]
    """Name -> what was read of that input."""
    jobs: list[attempts.AttemptLine]
    """Its Slurm attempts as in `attempts.jsonl`."""
    gpu_hours: float


Stages = dict[str, Stage]
"""Key -> stage, inputs before the stages that read them. A key is the stage's directory below the output base,
`data/mixed/sft-1a2b3c4d` or `sft-llama-1a2b3c4d/model`, or for a stage outside of it its own name."""


class Lineage(TypedDict):
    """A result and all that it was made from."""

    root: str
    """Key of the result."""
    stages: Stages
    gpu_hours: float
    """Of all stages. Under Slurm failed and interrupted attempts are included; elsewhere they are GPUs times
    `training_seconds` of each training, without steps lost to restarts."""
    patches: NotRequired[dict[str, str]]
    packages: NotRequired[dict[str, str]]
    written: NotRequired[str]


def collect(path: Path | str) -> Lineage:
    """The lineage of a run directory, a model, a manifest or any file of a stage.

    A directory with a finished export means the exported model. The lineage of a model that was copied without the
    stages it was made from is its own `provenance.json`.

    Raises UserError when the path belongs to no stage.
    """
    asked = Path(path).resolve()
    if not asked.exists():
        expected = "a run directory, a model, a manifest or a file of a stage"
        raise UserError(f"{path}: no such file or folder; give {expected}")
    kept = _kept(asked)
    found = find_manifest(asked)
    if found is None:
        if kept is None:
            raise UserError(f"{path}: belongs to no stage; no {manifest.NAME} beside it or in a folder above")
        for key, stage in kept["stages"].items():
            stage["directory"] = str(asked if asked.is_dir() else asked.parent) if key == kept["root"] else None
        return kept
    stages: Stages = {}
    root = _add(found, stages, kept["stages"] if kept else {})
    return {"root": root, "stages": stages, "gpu_hours": round(sum(s.get("gpu_hours", 0) for s in stages.values()), 4)}


def trainings(lineage: Lineage) -> list[Stage]:
    """The training stages that lead to a model, the last one first."""
    found: list[Stage] = []
    stages = lineage["stages"]
    stage = stages[lineage["root"]]
    while True:
        if "train" in stage["inputs"]:
            stage = stages[stage["inputs"]["train"]]
        if stage["stage"] != "train":
            return found
        found.append(stage)
        stage = stages[stage["inputs"]["model"]]


def to_source(stages: Stages, key: str | None) -> list[Stage]:
    """From a dataset's tokens, rows or source back to its source."""
    found: list[Stage] = []
    while key is not None:
        found.append(stages[key])
        key = stages[key]["inputs"].get("rows") or stages[key]["inputs"].get("raw")
    return found


def find_manifest(path: Path) -> Path | None:
    """The manifest of the stage that a file or directory belongs to."""
    if path.is_dir() and (path / "model" / manifest.NAME).is_file():
        return path / "model" / manifest.NAME
    folders = (path, *path.parents) if path.is_dir() else path.parents
    found = (folder / manifest.NAME for folder in folders)
    return next((file for file in found if file.is_file() and _is_manifest(file)), None)


def key_of(directory: Path) -> str:
    """A stage's directory below the output base."""
    parts = directory.parts
    if "data" in parts[-3:-2]:
        return "/".join(parts[-3:])
    return "/".join(parts[-2:] if parts[-1] == "model" or (parts[-2:-1] and parts[-2] in _FOLDERS) else parts[-1:])


def gpu_hours(stage: manifest.Facts, jobs: list[attempts.AttemptLine]) -> float:
    """Hours that GPUs were held for a stage: by its Slurm attempts, else by the training itself."""
    if any("gpus" in job for job in jobs):
        return round(sum(job.get("gpus", 0) * attempts.seconds(job) for job in jobs) / 3600, 4)
    return round(stage.get("gpus", 0) * (stage.get("training_seconds") or 0) / 3600, 4)


def find_made_from(stage: Stage, folder: str) -> list[manifest.Manifest]:
    """Manifests below `<output base>/<folder>` of stages that have this one as an input: evaluations, cards."""
    if stage["directory"] is None:
        return []
    directory = Path(stage["directory"])
    base = directory.parents[key_of(directory).count("/")]
    found = [manifest.read(path) for path in sorted((base / folder).glob(f"*/{manifest.NAME}")) if _is_manifest(path)]
    mine = stage.get("fingerprint")
    return [one for one in found if mine in [read.get("fingerprint") for read in one.get("inputs", {}).values()]]


def _add(path: Path, stages: Stages, kept: Stages) -> str:
    """Add a stage after its inputs; returns its key."""
    found = manifest.read(path)
    if not _can_be_followed(found):
        raise UserError(f"{path}: was changed after it was written; restore it, or delete it to run the stage again")
    directory = path.parent
    key = key_of(directory)
    if key in stages and stages[key]["directory"] != str(directory):
        key = f"{key}#{found.get('fingerprint', '')[:8]}"
    if key in stages:
        return key
    inputs, expected = {}, found.get("inputs", {})
    for name, entry in expected.items():
        source = _input(directory, entry)
        inputs[name] = _add(source, stages, kept) if source else _absent(entry, stages, kept)
    jobs = attempts.lines(attempts.folder_of(directory))
    own = {"directory": str(directory), "inputs": inputs, "expected": expected, "jobs": jobs}
    stages[key] = cast(Stage, {**found, **own, "gpu_hours": gpu_hours(found, jobs)})
    return key


def _input(directory: Path, entry: manifest.Input) -> Path | None:
    """An input's manifest: beside this stage first, so that a copied output base is followed within itself."""
    recorded = Path(entry["path"])
    base = directory.parents[key_of(directory).count("/")]
    candidates = [base / key_of(recorded.parent) / recorded.name]
    candidates += [parent / recorded for parent in directory.parents if not recorded.is_absolute()]
    found = [path for path in (*candidates, recorded) if path.is_file()]
    right = [path for path in found if manifest.read(path).get("fingerprint") == entry["fingerprint"]]
    return next((path.resolve() for path in (*right, *found)), None)


def _absent(entry: Mapping[str, Any], stages: Stages, kept: Stages) -> str:
    """Add a stage that is not on this machine, as a `provenance.json` has kept it; returns its key."""
    key = key_of(Path(entry["path"]).parent)
    if key in kept:
        for other in kept[key]["inputs"].values():
            _absent({"path": f"{other}/{manifest.NAME}"}, stages, kept)
    unknown = {"stage": "unknown", "inputs": {}, "expected": {}, "jobs": [], "gpu_hours": 0.0, "files": []}
    fingerprint = {"fingerprint": entry.get("fingerprint")}
    stages.setdefault(key, cast(Stage, unknown | fingerprint | {**kept.get(key, {}), "directory": None}))
    return key


def _kept(path: Path) -> Lineage | None:
    """`provenance.json` of the model that a path belongs to."""
    for folder in (path, path / "model", path.parent):
        try:
            found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if {"root", "stages"} <= found.keys() and found["root"] in found["stages"]:
            return cast(Lineage, found)
    return None


def _is_manifest(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return True  # a damaged one of ours: reading it raises
    except OSError:
        return path.parent.joinpath(PROVENANCE).is_file()
    # One changed byte takes one of them away.
    return isinstance(found, dict) and len({"stage", "fingerprint", "inputs", "checksum"} & found.keys()) > 1


def _can_be_followed(found: manifest.Manifest) -> bool:
    """Whether a manifest has what leads to its files and its inputs."""
    named: list[tuple[str, Mapping[str, Any]]] = [("fingerprint", found), ("stage", found)]
    named += [("path", file) for file in found.get("files", [])]
    named += [(key, entry) for entry in found.get("inputs", {}).values() for key in ("path", "fingerprint")]
    return all(isinstance(entry.get(key), str) for key, entry in named)
