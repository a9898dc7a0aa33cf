"""Differences between two runs: keys, inputs, versions, results."""

import re
from pathlib import Path
from typing import Any

from post_training.config import load_file
from post_training.core import manifest
from post_training.lineage.collect import Lineage, Stage, find_made_from

# Keys of costs rather than results end so.
_COST = re.compile(r"(?:seconds|_per_second|_per_second_per_gpu|mfu|_bytes)$")
Rows = list[dict[str, Any]]
Roles = dict[str, Stage]
# Sections that say where and how fast a run runs.
_WHERE = ("slurm", "accelerate", "deepspeed", "logging", "paths", "checkpointing", "debug", "publish", "offline")
_NOT_RESULTS = (
    "stage", "fingerprint", "inputs", "config", "files", "versions", "git", "code_sha256", "host", "user", "finished", "checksum",
    "directory", "expected", "jobs", "slurm_job_id", "shards", "card", "final_checkpoint", "folder", "seconds", "gpu_hours",
    "training_seconds", "probes", "weights", "module",
)  # fmt: skip


def differences(a: Lineage, b: Lineage) -> dict[str, Rows]:
    """The differences between two lineages.

    Returns kind -> rows of `what`, `a` and `b`: `keys` that decide results, `keys that decide nothing` (where and how
    fast), `inputs` by the names that lead to them from the result, `versions` and code, `results` and `costs`.
    """
    ours, theirs = _by_role(a), _by_role(b)
    keys = _differing(*_configurations(ours, theirs))
    where = [row for row in keys if set(row["what"].split(".")[:2]) & set(_WHERE)]
    return {
        "keys": [row for row in keys if row not in where],
        "keys that decide nothing": where,
        "inputs": _differing(_inputs(ours), _inputs(theirs)),
        "versions": _differing(_versions(a), _versions(b)),
        "results": _differing(_results(ours), _results(theirs)),
        "costs": _differing(_costs(a, ours), _costs(b, theirs)),
    }


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted key -> value."""
    if isinstance(value, dict) and value:
        pairs = [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list) and value:
        pairs = [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
    else:
        return {path: value}
    return {key: found for where, inner in pairs for key, found in flat(inner, where).items()}


def _differing(a: dict[str, Any], b: dict[str, Any]) -> Rows:
    names = list(dict.fromkeys([*a, *b]))
    return [{"what": name, "a": a.get(name), "b": b.get(name)} for name in names if a.get(name) != b.get(name)]


def _by_role(lineage: Lineage) -> Roles:
    """Stages by the names of the inputs that lead to them, shortest path first; the result itself is ''."""
    found: Roles = {}
    seen = set()
    waiting = [("", lineage["root"])]
    while waiting:
        role, key = waiting.pop(0)
        if key in seen:
            continue
        seen.add(key)
        stage = found[role] = lineage["stages"][key]
        waiting += [(f"{role} > {name}".removeprefix(" > "), other) for name, other in stage["inputs"].items()]
    return found


def _configurations(ours: Roles, theirs: Roles) -> list[dict[str, Any]]:
    """The `config.yaml` of both, or where one has none, the configurations of their stages."""
    files = [_config_file(stages) for stages in (ours, theirs)]
    if all(files):
        return [flat(load_file(file)) for file in files if file]
    return [
        {f"{_named(stage, role)}: {key}": value
         for role, stage in stages.items() for key, value in flat(stage.get("config", {})).items()}
        for stages in (ours, theirs)
    ]  # fmt: skip


def _named(stage: Stage, role: str) -> str:
    return f"{stage['stage']} ({role})" if role else stage["stage"]


def _config_file(stages: Roles) -> Path | None:
    """`config.yaml` of the training run, or of the result itself."""
    directories = [stage["directory"] for stage in (stages.get("train", stages[""]), stages[""])]
    found = [Path(directory) / "config.yaml" for directory in directories if directory]
    return next((path for path in found if path.is_file()), None)


def _inputs(stages: Roles) -> dict[str, str]:
    """Each input's repository and revision, and a digest of its content."""
    found = {}
    for role, stage in stages.items():
        if role:
            source = f"{stage['repository']}@{stage.get('revision_sha')} " if stage.get("repository") else ""
            found[role] = f"{source}{stage['stage']} with content {_content(stage)}"
    return found


def _content(stage: Stage) -> str:
    """Digest of a stage's files; of a training and of an export only of the weights, since they also have times and logs."""
    files, folder = stage.get("files", []), stage.get("final_checkpoint", "")
    weights = [f for f in files if f["path"].endswith(".safetensors") and f["path"].startswith(folder)]
    return manifest.content({"files": weights if weights and stage["stage"] in ("train", "export") else files})[:12]


def _versions(lineage: Lineage) -> dict[str, str]:
    """Every version of libraries and code that any stage was made with."""
    found: dict[str, set[str]] = {}
    for stage in lineage["stages"].values():
        git: dict[str, Any] = stage.get("git") or {}
        changes = (git.get("diff") or {}).get("sha256", "")[:12]
        code = {
            "commit": git.get("commit"),
            "code": (stage.get("code_sha256") or "")[:12],
            "changes in the code": changes,
        }
        for name, version in {**stage.get("versions", {}), **code}.items():
            if version:
                found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def _results(stages: Roles) -> dict[str, Any]:
    """Every result that a stage has measured, the content of the last one, and its evaluations."""
    found: dict[str, Any] = {"content": _content(stages[""])}
    found |= {key: value for key, value in _numbers(stages).items() if not _COST.search(key)}
    for folder in ("evaluations", "lm_eval"):
        for evaluation in find_made_from(stages[""], folder):
            found |= {f"evaluation: {key}": value for key, value in flat(evaluation.get("results", {})).items()}
    return found


def _numbers(stages: Roles) -> dict[str, Any]:
    """Every fact that stages have written into their manifests."""
    found: dict[str, Any] = {}
    for role, stage in stages.items():
        facts = flat({key: value for key, value in stage.items() if key not in _NOT_RESULTS})
        found |= {f"{role}: {key}".removeprefix(": "): value for key, value in facts.items() if key}
    return found


def _costs(lineage: Lineage, stages: Roles) -> dict[str, Any]:
    seconds = {f"seconds of {_named(stage, role)}": stage.get("seconds") for role, stage in stages.items()}
    speed = {key: value for key, value in _numbers(stages).items() if _COST.search(key)}
    return {"GPU-hours": lineage["gpu_hours"], **seconds, **speed}
