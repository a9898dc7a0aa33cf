"""The record of an exported model in its own folder: `provenance.json`, and the `config.yaml` that rebuilds it.

provenance.json   the lineage, without names of users, machines and their folders
config.yaml       the run's own, with commits for revisions and without evaluations; local data by the path that was
                  configured, and their hashes as `recorded_files`
provenance/       the user's templates and transform modules, as they were used; `config.yaml` names them there
"""

import importlib.metadata
import json
import time
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from post_training.config import load_file
from post_training.core import code, manifest
from post_training.core.fingerprint import file_sha256, write_atomically
from post_training.core.task import Task
from post_training.lineage.collect import PROVENANCE, Lineage, Stage, collect, key_of
from post_training.release.rebuild import keep_code, leave_out_evaluation, pin_revisions, recorded_files, sections

CONFIG = "config.yaml"
_PRIVATE = ("host", "user", "directory")
# Where and how fast; and what a rebuild must not do again.
_NOT_REBUILT = ("paths", "debug", "publish")


def write_provenance(task: Task, folder: Path, files: list[manifest.File]) -> Lineage:
    """Write `provenance.json`: the lineage as `collect` gives it, with the export's own files, and return it.

    It also has `patches` (hash -> text of each `code.diff`), `packages` (name -> version of all that is installed)
    and `written`.
    """
    found = collect(task.inputs["train"])
    own: Stage = {
        "stage": task.stage,
        "fingerprint": task.spec["fingerprint"],
        "config": task.config,
        "inputs": {"train": found["root"], "data": found["stages"][found["root"]]["inputs"]["data"]},
        "expected": {},
        "files": files,
        "jobs": [],
        "gpu_hours": 0.0,
        "versions": manifest.versions(),
        "git": code.state(folder),
        "code_sha256": code.sha256(),
    }
    stages = {**found["stages"], key_of(task.directory.absolute()): own}
    lineage: Lineage = {
        "root": key_of(task.directory.absolute()),
        "stages": {key: _public(stage) for key, stage in stages.items()},
        "gpu_hours": found["gpu_hours"],
        "patches": _patches([*(stage.get("directory") for stage in found["stages"].values()), str(folder)]),
        "packages": {found.name: found.version for found in importlib.metadata.distributions()},
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_atomically(folder / PROVENANCE, json.dumps(lineage, indent=1, ensure_ascii=False) + "\n")
    return lineage


def write_config(task: Task, folder: Path) -> None:
    """Write `config.yaml` and what it names below `provenance/`: all that a rebuild needs but data and models."""
    path = task.inputs["train"].parent / CONFIG
    tree = {key: value for key, value in load_file(path).items() if key not in _NOT_REBUILT}
    lineage = collect(task.inputs["train"])
    found = sections(tree, lineage)
    tree["recorded_files"] = recorded_files(found, lineage["stages"])
    keep_code(found, lineage["stages"], folder)
    pin_revisions(found, lineage["stages"])
    leave_out_evaluation(found)
    for section, _ in found:
        section.pop("slurm", None)
        # A rebuild does not write over what the run has saved elsewhere.
        section["checkpointing"]["inference_checkpoint_path"] = None
    write_atomically(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(tree)))


def _public(stage: Stage) -> Stage:
    """A stage without users, machines and their folders."""
    kept = {key: value for key, value in stage.items() if key not in _PRIVATE}
    kept["files"] = [file | {"path": _name(file["path"])} for file in stage.get("files") or []]
    kept["expected"] = {name: {**entry, "path": ""} for name, entry in stage["expected"].items()}
    kept["jobs"] = [{key: value for key, value in job.items() if key not in ("host", "nodes")} for job in stage["jobs"]]
    kept |= {key: _name(str(kept[key])) for key in ("folder", "module") if key in kept}
    return cast(Stage, kept)


def _name(path: str) -> str:
    """A path within a stage as it is; the last part of any other path."""
    return Path(path).name if path.startswith("/") else path


def _patches(directories: list[str | None]) -> dict[str, str]:
    """sha256 -> text of the uncommitted changes of checkouts."""
    files = [Path(directory) / code.DIFF for directory in directories if directory]
    return {file_sha256(path): path.read_text(encoding="utf-8") for path in files if path.is_file()}
