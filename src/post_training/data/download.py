"""A source's rows as files on this machine: the only data stage that may use the network."""

import os
import tempfile
from pathlib import Path
from typing import Any

from post_training.errors import DataError
from post_training.fingerprint import FileHashes, file_sha256
from post_training.task import Task


def run(task: Task) -> None:
    """Body of the rule `download`. Local files stay where they are and are named with their hashes."""
    if "hub" in task.config:
        task.finish(**_fetch(task))
        return
    hashes = FileHashes(task.directory.parents[2] / ".file_hashes.json")
    files = []
    for name, planned in zip(task.runtime["files"], task.config["sha256"], strict=True):
        path = Path(os.path.abspath(name))  # not where a link leads: in the Hub's cache the suffix is lost there
        if not path.is_file() or hashes(path) != planned:
            raise DataError(f"{name}: changed since the run was planned; start again to use it as it is now")
        files.append({"path": str(path), "sha256": planned, "bytes": path.stat().st_size})
    print(f"{len(files)} local files, {sum(entry['bytes'] for entry in files):,} bytes")
    task.finish(files=files)


def _fetch(task: Task) -> dict[str, Any]:
    """A Hub dataset at a commit, as parquet beside the manifest."""
    hub, offline = task.config["hub"], task.runtime["offline"]
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar
    from huggingface_hub import HfApi

    disable_progress_bar()
    name, revision = hub["path"], hub["revision"]
    task.directory.mkdir(parents=True, exist_ok=True)
    path = task.directory / "rows.parquet"
    unfinished = path.with_suffix(".parquet.tmp")
    try:
        if offline:
            source = _snapshot(name, revision)
            sha, at = source.name, None
        else:
            source, sha = name, str(HfApi().dataset_info(name, revision=revision).sha)
            at = sha
        # The library's copy of the rows is of no use to anyone once they are written here.
        with tempfile.TemporaryDirectory(dir=task.directory, prefix=".cache-") as cache:
            rows = load_dataset(str(source), hub["subset"], split=hub["split"], revision=at, cache_dir=cache)
            rows.to_parquet(unfinished)
    except DataError:
        raise
    except Exception as error:  # the Hub client raises a kind for each cause; all are the source's or the network's
        raise DataError(f"{name} ({hub['split']}): {_explain(error, hub)}") from None
    unfinished.replace(path)
    entry = {"path": path.name, "sha256": file_sha256(path), "bytes": path.stat().st_size}
    print(f"{name}: {len(rows):,} rows, {entry['bytes']:,} bytes, commit {sha}")
    return {"files": [entry], "rows_out": len(rows), "revision_sha": sha, "repository": name}


def _snapshot(name: str, revision: str | None) -> Path:
    """The folder of a dataset in the Hub cache of this machine, named by its commit.

    A snapshot that was fetched by its commit has no branch name; without a revision it is taken when it is the only one.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        folder = Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "snapshots"
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        if revision is None and len(found) == 1:
            return found[0]
        have = f"it has {', '.join(p.name for p in found)}" if found else "it has none"
        raise DataError(
            f"{name}: offline, and this machine has no snapshot of revision {revision or 'main'} ({have}); name one of "
            "them as the dataset's revision, or run once with offline=false"
        ) from None


def _explain(error: Exception, hub: dict[str, Any]) -> str:
    """What went wrong at the Hub and what to do, in one line."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "is gated; ask for access on its page and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return "not found on the Hugging Face Hub; check path, or set HF_TOKEN if it is private"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {hub['revision']!r}; name a branch, tag or commit of it"
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"cannot be fetched from the Hugging Face Hub ({reason}); check path, subset, split, revision and the network, "
        "or give local files"
    )
