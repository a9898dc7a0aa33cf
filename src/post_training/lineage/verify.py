"""Every file of every stage hashed again.

What a stage has made is what its manifest lists. A file beside it that came later is told, too, but not in two places that
hold more than a result: a training's directory (logs, earlier checkpoints, what Slurm said), and the epochs that longer
runs add to a mix, which those runs list.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from post_training.core import manifest
from post_training.core.fingerprint import file_sha256
from post_training.lineage.collect import PROVENANCE, find_made_from
from post_training.run_dir.lock import is_own_file

CARD = "README.md"
_EPOCHS = "epoch-*.npy"


@dataclass
class Verification:
    """What no longer matches, and how much was looked at."""

    problems: list[dict[str, str]] = field(default_factory=list)
    """`stage` (key), `file` and `problem`."""
    absent: list[str] = field(default_factory=list)
    """Stages that are not on this machine."""
    files: int = 0
    bytes: int = 0


def verify(lineage: dict[str, Any], progress: Callable[[int], None] = lambda _: None) -> Verification:
    """Hash every file of every stage that `collect` found, sources too, and compare with the manifests.

    `progress` is called with the bytes of each file that is done.
    """
    result = Verification()
    wanted: list[tuple[str, Path, dict[str, Any]]] = []
    for key, stage in lineage["stages"].items():
        if stage["directory"] is None:
            result.absent.append(key)
            continue
        directory = Path(stage["directory"])
        of_manifest = list(_of_manifest(directory, stage, lineage["stages"]))
        # What a changed manifest lists says nothing of what was there.
        added = [] if of_manifest else _added(directory, stage)
        for name, wrong in (*of_manifest, *((name, "is not in the manifest; it came later") for name in added)):
            result.problems.append({"stage": key, "file": name, "problem": wrong})
        diff = (stage.get("git") or {}).get("diff")
        wanted += [(key, directory, file) for file in stage.get("files", [])]
        wanted += [(key, directory, diff)] if diff and "path" in diff and (directory / manifest.NAME).is_file() else []
        if problem := _of_card(directory, stage):
            result.problems.append({"stage": key, "file": CARD, "problem": problem})
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for (key, _, file), problem in zip(wanted, pool.map(lambda one: _of_file(one[1], one[2]), wanted), strict=True):
            if problem:
                result.problems.append({"stage": key, "file": file["path"], "problem": problem})
            result.files += 1
            result.bytes += file.get("bytes", 0)
            progress(file.get("bytes", 0))
    return result


def _of_manifest(directory: Path, stage: dict[str, Any], stages: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with a manifest itself, and with what has become of its inputs."""
    path = directory / manifest.NAME
    if path.is_file():  # a model from the Hub has none, and is told by its provenance.json
        told = manifest.read(path)
        if "checksum" not in told:
            yield manifest.NAME, "has no checksum; it was changed, or written by an earlier version"
        elif manifest.checksum(told) != told["checksum"] or manifest.text(told) != path.read_text(encoding="utf-8"):
            yield manifest.NAME, "was changed after it was written"
    for name, expected in stage["expected"].items():
        source = stages[stage["inputs"][name]]
        if source["directory"] is None:
            continue
        if source.get("fingerprint") != expected["fingerprint"]:
            yield manifest.NAME, f"its input {name} is another stage now"
        elif expected.get("content") not in (None, manifest.content(source)):
            yield manifest.NAME, f"its input {name} was made again since, with other content"


def _added(directory: Path, stage: dict[str, Any]) -> list[str]:
    """Files of a stage's own that it does not list."""
    if stage["stage"] == "train":
        return []
    listed = {file["path"] for file in stage.get("files", [])} | {CARD, PROVENANCE}
    found = [path for path in manifest.own_files(directory) if not is_own_file(path)]
    names = [str(path.relative_to(directory)) for path in found]
    return [name for name in names if name not in listed and not (stage["stage"] == "mix" and fnmatch(name, _EPOCHS))]


def _of_card(directory: Path, stage: dict[str, Any]) -> str | None:
    """An export's model card is written again when the model was evaluated: any of those it is."""
    if "card" not in stage:
        return None
    if not (directory / CARD).is_file():
        return "is gone"
    cards = [file.get("sha256") for card in find_made_from(stage, "cards") for file in card.get("files", [])]
    known = [stage["card"].get("sha256"), *cards]
    return None if file_sha256(directory / CARD) in known else "was changed after it was written"


def _of_file(directory: Path, file: dict[str, Any]) -> str | None:
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
