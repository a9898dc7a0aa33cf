"""Hash every file of every stage again and compare it with the manifests.

A manifest lists the files that its stage has made. A file that was added later is reported, too, except in two places that
hold more than a result: a training's directory (logs, earlier checkpoints, Slurm output), and the epochs that longer
runs add to a mix, which those runs list.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TypedDict

from post_training.core import manifest
from post_training.core.fingerprint import file_sha256
from post_training.lineage.collect import PROVENANCE, Lineage, Stage, Stages, find_made_from
from post_training.run_dir.lock import is_own_file

CARD = "README.md"
_EPOCHS = "epoch-*.npy"
_CHANGED = "was changed after it was written"


class Problem(TypedDict):
    """A file that does not match."""

    stage: str
    """Its key."""
    file: str
    problem: str


@dataclass
class Verification:
    """The files that no longer match, and how many were checked."""

    problems: list[Problem] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """Stages that are not on this machine."""
    files: int = 0
    bytes: int = 0


def verify(lineage: Lineage, progress: Callable[[int], None] = lambda _: None) -> Verification:
    """Hash every file of every stage that `collect` found, sources too, and compare with the manifests.

    `progress` is called with the bytes of each file that is done.
    """
    result = Verification()
    wanted: list[tuple[str, Path, manifest.File]] = []
    for key, stage in lineage["stages"].items():
        if stage["directory"] is None:
            result.absent.append(key)
            continue
        directory = Path(stage["directory"])
        found = list(_of_manifest(directory, stage, lineage["stages"]))
        if not found:  # the files that a changed manifest lists may not be those of the stage
            found += [(name, "is not in the manifest; it came later") for name in _added(directory, stage)]
        found += [(CARD, problem)] if (problem := _of_card(directory, stage)) else []
        result.problems += [{"stage": key, "file": name, "problem": problem} for name, problem in found]
        diff = (stage.get("git") or {}).get("diff")
        wanted += [(key, directory, file) for file in stage.get("files", [])]
        wanted += [(key, directory, diff)] if diff and "path" in diff and (directory / manifest.NAME).is_file() else []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for (key, _, file), wrong in zip(wanted, pool.map(lambda one: _of_file(*one[1:]), wanted), strict=True):
            if wrong:
                result.problems.append({"stage": key, "file": file["path"], "problem": wrong})
            result.files += 1
            result.bytes += file.get("bytes", 0)
            progress(file.get("bytes", 0))
    return result


def _of_manifest(directory: Path, stage: Stage, stages: Stages) -> Iterator[tuple[str, str]]:
    """Problems of a manifest itself, and of inputs that were made again since."""
    path = directory / manifest.NAME
    if path.is_file():  # a model from the Hub has none, only its provenance.json
        found = manifest.read(path)
        if "checksum" not in found:
            yield manifest.NAME, "has no checksum; it was changed, or written by an earlier version"
        elif manifest.checksum(found) != found["checksum"] or manifest.text(found) != path.read_text(encoding="utf-8"):
            yield manifest.NAME, _CHANGED
    for name, expected in stage["expected"].items():
        source = stages[stage["inputs"][name]]
        if source["directory"] is None:
            continue
        if source.get("fingerprint") != expected["fingerprint"]:
            yield manifest.NAME, f"its input {name} is another stage now"
        elif expected.get("content") not in (None, manifest.content(source)):
            yield manifest.NAME, f"its input {name} was made again since, with other content"


def _added(directory: Path, stage: Stage) -> list[str]:
    """Files in a stage's directory that its manifest does not list."""
    if stage["stage"] == "train":
        return []
    listed = {file["path"] for file in stage.get("files", [])} | {CARD, PROVENANCE}
    found = [path for path in manifest.own_files(directory) if not is_own_file(path)]
    names = [str(path.relative_to(directory)) for path in found]
    return [name for name in names if name not in listed and not (stage["stage"] == "mix" and fnmatch(name, _EPOCHS))]


def _of_card(directory: Path, stage: Stage) -> str | None:
    """The problem of an export's model card. It is written again after an evaluation: any of these versions is right."""
    if "card" not in stage:
        return None
    if not (directory / CARD).is_file():
        return "is gone"
    cards = [file.get("sha256") for card in find_made_from(stage, "cards") for file in card.get("files", [])]
    return None if file_sha256(directory / CARD) in (stage["card"].get("sha256"), *cards) else _CHANGED


def _of_file(directory: Path, file: manifest.File) -> str | None:
    path = directory / file["path"]
    try:
        size = path.stat().st_size
        if size != file.get("bytes", size):
            return f"has {size:,} bytes, not {file['bytes']:,}"
        if "sha256" not in file:
            return "has no hash in the manifest"
        found = file_sha256(path)
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == file["sha256"] else f"was changed: sha256 {found[:12]}, not {file['sha256'][:12]}"
