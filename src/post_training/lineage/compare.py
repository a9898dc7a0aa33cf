"""What two runs do not have in common: keys, inputs, versions, results."""

import re
from pathlib import Path
from typing import Any

from post_training.config.load import load_file
from post_training.core import manifest
from post_training.lineage.collect import find_made_from

# A number that says how fast, and with how much: the end of its key.
_COST = re.compile(r"(?:seconds|_per_second|_per_second_per_gpu|mfu|_bytes)$")
Rows = list[dict[str, Any]]
# Sections that say where and how fast a run runs.
_WHERE = ("slurm", "accelerate", "deepspeed", "logging", "paths", "checkpointing", "debug", "publish", "offline")
_NOT_RESULTS = (
    "stage", "fingerprint", "inputs", "config", "files", "versions", "git", "code_sha256", "host", "user", "finished", "checksum",
    "directory", "expected", "jobs", "slurm_job_id", "shards", "card", "final_checkpoint", "folder", "seconds", "gpu_hours",
    "training_seconds", "probes", "weights", "module",
)  # fmt: skip


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Rows]:
    """What differs between two lineages of `collect`.

    Returns kind -> rows of `what`, `a` and `b`: `keys` that decide results, `keys that decide nothing` (where and how
    fast), `inputs` by their way from the result, `versions` and code, `results` and `costs`.
    """
    ours, theirs = _by_role(a), _by_role(b)
    keys = _differing(*_configurations(a, b, ours, theirs))
    where = [row for row in keys if set(row["what"].split(".")[:2]) & set(_WHERE)]
    return {
        "keys": [row for row in keys if row not in where],
        "keys that decide nothing": where,
        "inputs": _differing(_inputs(ours), _inputs(theirs)),
        "versions": _differing(_versions(a), _versions(b)),
        "results": _differing(_results(a, ours), _results(b, theirs)),
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


def _by_role(lineage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Stages by the names of the inputs that lead to them, shortest way first; the result itself is ''."""
    found, seen = {}, set()
    waiting = [("", lineage["root"])]
    while waiting:
        role, key = waiting.pop(0)
        if key in seen:
            continue
        seen.add(key)
        stage = found[role] = lineage["stages"][key]
        waiting += [(f"{role} > {name}".removeprefix(" > "), other) for name, other in stage["inputs"].items()]
    return found


def _configurations(
    a: dict[str, Any], b: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `config.yaml` of both, or where one has none, what their stages were told."""
    files = [_config_file(lineage) for lineage in (a, b)]
    if files[0] and files[1]:
        return flat(load_file(files[0])), flat(load_file(files[1]))
    both = [
        {f"{stage['stage']}{f' ({role})' if role else ''}: {key}": value
         for role, stage in stages.items() for key, value in flat(stage.get("config", {})).items()}
        for stages in (ours, theirs)
    ]  # fmt: skip
    return both[0], both[1]


def _config_file(lineage: dict[str, Any]) -> Path | None:
    """Of the training run that a lineage ends in."""
    stage = lineage["stages"][lineage["root"]]
    trained = lineage["stages"].get(stage["inputs"].get("train", ""), stage)
    places = [Path(one["directory"]) / "config.yaml" for one in (trained, stage) if one["directory"]]
    return next((place for place in places if place.is_file()), None)


def _inputs(stages: dict[str, Any]) -> dict[str, str]:
    """What each input is: a revision or a hash of its content."""
    found = {}
    for role, stage in stages.items():
        if role:
            origin = f"{stage['repository']}@{stage.get('revision_sha')} " if stage.get("repository") else ""
            found[role] = f"{origin}{stage['stage']} with content {_content(stage)}"
    return found


def _content(stage: dict[str, Any]) -> str:
    """Digest of what a stage has made: of a training and of an export the weights, beside which lie times and logs."""
    files, folder = stage.get("files", []), stage.get("final_checkpoint", "")
    weights = [f for f in files if f["path"].endswith(".safetensors") and f["path"].startswith(folder)]
    return manifest.content({"files": weights if weights and stage["stage"] in ("train", "export") else files})[:12]


def _versions(lineage: dict[str, Any]) -> dict[str, str]:
    """Every version that any stage was made with, and of which code."""
    found: dict[str, list[str]] = {}
    for stage in lineage["stages"].values():
        git = stage.get("git") or {}
        told = {**stage.get("versions", {}), "commit": git.get("commit"), "code": (stage.get("code_sha256") or "")[:12]}
        told["changes in the code"] = (git.get("diff") or {}).get("sha256", "")[:12] or None
        for name, version in told.items():
            if version and version not in found.setdefault(name, []):
                found[name].append(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def _results(lineage: dict[str, Any], stages: dict[str, Any]) -> dict[str, Any]:
    """Every number that a stage has found out, the content of the result, and its evaluations."""
    found: dict[str, Any] = {"content": _content(stages[""])}
    found |= {key: value for key, value in _numbers(stages).items() if not _COST.search(key)}
    for folder in ("evaluations", "lm_eval"):
        for evaluation in find_made_from(stages[""], folder):
            found |= {f"evaluation: {key}": value for key, value in flat(evaluation.get("results", {})).items()}
    return found


def _numbers(stages: dict[str, Any]) -> dict[str, Any]:
    """Everything that stages say of their work."""
    found: dict[str, Any] = {}
    for role, stage in stages.items():
        told = {key: value for key, value in stage.items() if key not in _NOT_RESULTS}
        found |= {f"{role}: {key}".removeprefix(": "): value for key, value in flat(told).items() if key}
    return found


def _costs(lineage: dict[str, Any], stages: dict[str, Any]) -> dict[str, Any]:
    seconds = {
        f"seconds of {stage['stage']}{f' ({role})' if role else ''}": stage.get("seconds")
        for role, stage in stages.items()
    }
    speed = {key: value for key, value in _numbers(stages).items() if _COST.search(key)}
    return {"GPU-hours": lineage["gpu_hours"], **seconds, **speed}
