"""The files that jobs will read exist and are those that were recorded: a node without network cannot fetch them."""

from pathlib import Path

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.fingerprint import FileHashes
from post_training.models import folder as model_folder
from post_training.preflight.check import Check, check
from post_training.preflight.subject import Subject


def models(paths: dict[str, Path], hashes: FileHashes) -> list[Check]:
    """Files of each model folder against the hashes of its manifest, where it has some; large ones are hashed once."""
    return [_model(name, path, hashes) for name, path in paths.items()]


def _model(name: str, path: Path, hashes: FileHashes) -> Check:
    label = "assets.model"
    remedy = f"delete {path} to fetch or make it again"
    try:
        folder, facts = model_folder(path), manifest.read(path)
    except UserError as error:
        return Check(label, str(error), "failure", remedy)
    # The user's own files are absolute.
    recorded = {file: sha for file, sha in _recorded(path, facts).items() if file.is_relative_to(folder)}
    wrong = _wrong(recorded, hashes)
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    value = f"{name}: {len(recorded):,} files by checksum, {len(weights)} of weights"
    if wrong or not weights:
        value = f"{name}: {', '.join(wrong[:4]) or 'no weights'} missing or changed in {folder}"
    return check(label, value, fails=wrong or not weights, remedy=remedy)


def kernels(paths: set[Path], hashes: FileHashes) -> list[Check]:
    """Files of each attention kernel from the Hub against the hashes of its manifest."""
    found = []
    for path in sorted(paths):
        facts = manifest.read(path)
        recorded = _recorded(path, facts)
        wrong = _wrong(recorded, hashes)
        value = f"{facts['repository']} at {facts['revision_sha'][:12]}: {len(recorded):,} files by checksum"
        value = f"{', '.join(wrong[:4])} missing or changed in {path.parent}" if wrong else value
        found.append(check("assets.kernel", value, fails=wrong, remedy=f"delete {path} to fetch it again"))
    return found


def _recorded(path: Path, facts: manifest.Manifest) -> dict[Path, str]:
    """The files of a manifest -> their sha256."""
    return {path.parent / entry["path"]: entry["sha256"] for entry in facts.get("files") or [] if "sha256" in entry}


def _wrong(recorded: dict[Path, str], hashes: FileHashes) -> list[str]:
    return [file.name for file, sha in recorded.items() if not file.is_file() or hashes(file) != sha]


def rows(subject: Subject) -> Check:
    """The index of the mix and the token shards that it leads to: sizes, and the shards' recorded hashes."""
    mix, folder = subject.mix, subject.data.parent
    wrong = [entry["path"] for entry in mix["files"] if not _has(folder / entry["path"], entry["bytes"])]
    recorded: dict[Path, dict[str, str]] = {}
    for shard in mix["shards"]:
        path = folder / shard["path"]
        made = path.parent / "manifest.json"
        if made not in recorded:
            try:
                recorded[made] = {entry["path"]: entry["sha256"] for entry in manifest.read(made)["files"]}
            except UserError:
                recorded[made] = {}
        if not _has(path, shard["bytes"]) or recorded[made].get(path.name) != shard["sha256"]:
            wrong.append(shard["path"])
    count = len(mix["files"]) + len(mix["shards"])
    return check(
        "assets.rows",
        f"{', '.join(wrong[:3])}: missing or another file than the mix was made over" if wrong else f"{count:,} files",
        fails=wrong,
        remedy=f"delete {subject.data} to make the mix again",
    )


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
