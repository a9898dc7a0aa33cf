"""A source's rows as files on this machine: the only data stage that may use the network."""

import os
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
        path = Path(name).resolve()
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
    from huggingface_hub import HfApi

    name, revision = hub["path"], hub["revision"]
    try:
        sha = None if offline else str(HfApi().dataset_info(name, revision=revision).sha)
        rows = load_dataset(name, hub["subset"], split=hub["split"], revision=sha or revision)
    except Exception as error:  # the Hub client raises a kind for each cause; all are the source's or the network's
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{name} ({hub['split']}): cannot be fetched from the Hugging Face Hub ({reason}); check path, subset, split, "
            "revision and the network, or give local files"
        ) from None
    task.directory.mkdir(parents=True, exist_ok=True)
    path = task.directory / "rows.parquet"
    unfinished = path.with_suffix(".parquet.tmp")
    rows.to_parquet(unfinished)
    unfinished.replace(path)
    entry = {"path": path.name, "sha256": file_sha256(path), "bytes": path.stat().st_size}
    print(f"{name}: {len(rows):,} rows, {entry['bytes']:,} bytes, commit {sha or 'from the local cache'}")
    return {"files": [entry], "rows_out": len(rows), "revision_sha": sha, "repository": name}
