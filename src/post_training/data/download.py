"""A source's rows as local files: the only data stage that uses the network."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from post_training.core.errors import DataError, did_you_mean
from post_training.core.fingerprint import FileHashes, file_sha256, replacing
from post_training.core.hub import licence_of, refusal, set_environment
from post_training.core.locate import DATA_SUFFIXES, data_suffix
from post_training.core.task import Task


def run(task: Task) -> None:
    """Body of the rule `download`. Local files are not copied, but listed with their hashes."""
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
    """Fetch one split of a Hub dataset at a commit: its own files if our readers can read them.

    `datasets` only lists a split's files: its readers give every object the keys of all objects, and take some damaged files
    for shorter ones. Raises DataError.
    """
    hub, offline = task.config["hub"], task.runtime["offline"]
    set_environment(offline)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from datasets import load_dataset_builder
    from datasets.utils.logging import disable_progress_bar
    from huggingface_hub import HfApi

    from post_training.data.reading.readers import read_blocks

    disable_progress_bar()
    name, split, revision = hub["path"], hub["split"], hub["revision"]
    task.directory.mkdir(parents=True, exist_ok=True)
    try:
        if offline:
            source = _snapshot(name, revision)
            sha, at = source.name, None
        else:
            info = HfApi().dataset_info(name, revision=revision)
            source, sha = name, str(info.sha)
            at = sha
        # The library's copy of the rows is of no use to anyone once they are written here.
        with tempfile.TemporaryDirectory(dir=task.directory, prefix=".cache-") as cache:
            builder = load_dataset_builder(str(source), hub["subset"], revision=at, cache_dir=cache)
            named = _files_of_split(builder, name, split)
            if named is not None:
                paths = [_own_copy(file, number, name, sha, task.directory) for number, file in enumerate(named)]
            else:
                paths = [_converted(builder, split, task.directory)]
    except DataError:
        raise
    except Exception as error:  # the Hub client raises a kind for each cause; all are the source's or the network's
        raise DataError(f"{name} ({split}): {_explain(error, hub)}") from None
    shutil.rmtree(task.directory / "files" / ".cache", ignore_errors=True)
    rows = sum(block.size for block in read_blocks(paths))
    expected = (builder.info.splits or {}).get(split)
    if offline and expected is not None and expected.num_examples > rows:
        raise DataError(
            f"{name} ({split}): the snapshot {sha} on this machine has {rows:,} rows, its card says "
            f"{expected.num_examples:,}: it is incomplete; run once with offline=false"
        )
    files = [
        {"path": str(path.relative_to(task.directory)), "sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in paths
    ]
    print(
        f"{name}: {rows:,} rows, {len(files)} files, {sum(path.stat().st_size for path in paths):,} bytes, commit {sha}"
    )
    licence = licence_of(source / "README.md") if offline else getattr(info.card_data, "license", None)
    facts = {"files": files, "rows_out": rows, "revision_sha": sha, "repository": name}
    return facts | {"license": licence if isinstance(licence, str) else None}


def _files_of_split(builder: Any, name: str, split: str) -> list[str] | None:
    """Paths or `hf://` addresses of a split's files; None where only `datasets` can read them."""
    files = builder.config.data_files or {}
    kind = type(builder).__module__.rpartition(".")[2]
    if files and split not in files:
        raise DataError(f"{name}: has no split {split!r}. {did_you_mean(split, map(str, files))}")
    if kind not in ("json", "csv", "parquet", "arrow") or not files:
        return None
    for file in files[split]:
        # The library gives all files of a repository the reader of the most frequent suffix in it.
        if not data_suffix(file):
            raise DataError(
                f"{name} ({split}): {file}: unknown kind of file, expected one of {', '.join(DATA_SUFFIXES)}; choose another subset"
            )
    # What a dataset's card says of its files: another separator, rows below a key.
    separators = {"\t" if ".tsv" in str(data_suffix(file)) else "," for file in files[split]}
    plain = (kind != "csv" or separators == {builder.config.sep}) and (kind != "json" or builder.config.field is None)
    return [str(file) for file in files[split]] if plain else None


def _own_copy(file: str, number: int, repository: str, sha: str, folder: Path) -> Path:
    """A file of a snapshot, or of the Hub, in the stage's own folder."""
    if file.startswith("hf://"):
        from huggingface_hub import hf_hub_download

        within = file.partition(f"@{sha}/")[2]
        return Path(hf_hub_download(repository, within, repo_type="dataset", revision=sha, local_dir=folder / "files"))
    target = folder / "files" / f"{number:05d}-{Path(file).name}"
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(file), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)
    return target


def _converted(builder: Any, split: str, folder: Path) -> Path:
    """A split in a format that only `datasets` reads, as parquet."""
    path = folder / "rows.parquet"
    builder.download_and_prepare()
    with replacing(path) as file:
        builder.as_dataset(split).to_parquet(file)
    return path


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
    """Cause and remedy of a Hub error, in one line."""
    if found := refusal(error, "path", hub["revision"]):
        return found
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"cannot be fetched from the Hugging Face Hub ({reason}); check path, subset, split, revision and the network, "
        "or give local files"
    )
