"""A stage's manifest: small, written last, so its existence means that the stage is complete.

It lists every file of its stage with size and sha256, names its inputs with a digest of what they held, and has a
checksum over itself: `post_training.lineage` follows it, and finds a changed byte in any of them.
"""

import getpass
import hashlib
import importlib.metadata
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict, cast

from post_training.core import code, typed
from post_training.core.errors import UserError
from post_training.core.fingerprint import digest, file_sha256, write_atomically
from post_training.core.secrets import mask

NAME = "manifest.json"
_VERSIONS = (
    "torch transformers trl accelerate datasets tokenizers fastokens deepspeed peft numpy pyarrow snakemake"
).split()
# Above this, hashing is announced.
_LONG_BYTES = 8 << 30
File = dict[str, Any]
"""`path`, and `bytes` and `sha256` once it is hashed; shards of tokens have counts beside them."""


class _Listed(TypedDict):
    """What every entry of `files` has."""

    path: str
    bytes: int
    sha256: str


class Input(TypedDict):
    """One input as it was read."""

    fingerprint: str
    path: str
    content: str
    """Digest of the input's files, `content` of its manifest."""


class Facts(TypedDict, total=False):
    """What the kinds of stages report of their work; `write` takes them by name. A stage sets those that it has."""

    rows_in: int
    rows_out: int
    examples: int
    dropped: dict[str, int]
    tokens: int
    trained_tokens: int
    # download, download_model, download_kernel, build_model, export, push
    folder: str
    repository: str
    revision: str
    revision_sha: str
    license: str | None
    vocab_size: int
    trust_remote_code: bool
    kernels: dict[str, str]
    """Of a kernel of the Hub: each repository that it needs -> its folder, relative to the manifest."""
    builds: list[str]
    # transform, filter, tokenize, mix, reference
    skipped: dict[str, int]
    dropped_examples: dict[str, int]
    trimmed: dict[str, int]
    first_row: int
    columns: dict[str, Any]
    turn_keys: dict[str, int]
    null_rows: int
    module: str
    evaluation_texts: dict[str, dict[str, int]]
    lengths: dict[str, int]
    engine: str
    packing_efficiency: float | None
    longest_document: int
    longest_row: int
    contradictory: dict[str, Any]
    held_out: Any
    table: list[dict[str, Any]]
    shards: list[File]
    probes: Any
    # prompts, generate, score, select
    left_out: int
    answers: dict[str, int]
    """Answers by what can become of them: `cut`, `empty`, `usable`, ..."""
    scores: dict[str, float]
    """`mean`, and quantiles by their percentage."""
    mean_characters: dict[str, float]
    # train, export
    steps: int
    final_checkpoint: str
    world_size: int | None
    gpus: int
    parameters: int
    trainable_parameters: int
    training_seconds: float | None
    device_name: str | None
    peak_memory_bytes: int | None
    energy_joules: float | None
    loss_first: float | None
    loss_last: float | None
    metrics: dict[str, Any]
    checkpoint: str
    weights: list[str]
    checks: Any
    """Of an export what its checks measured, of a preflight a list of findings."""
    card: File
    # preflight, evaluations, push
    verdict: str
    trainings: Any
    results: dict[str, dict[str, Any]]
    tasks: dict[str, Any]
    # every stage, in its manifest
    stage: str
    fingerprint: str
    config: dict[str, Any]
    files: list[File]
    seconds: float
    versions: dict[str, str]
    git: dict[str, Any] | None
    code_sha256: str
    host: str
    user: str
    slurm_job_id: str | None
    finished: str
    checksum: str


class Manifest(Facts, total=False):
    """`manifest.json` of a stage."""

    inputs: dict[str, Input]


def read(path: Path) -> Manifest:
    """A manifest as written. Raises UserError for a missing or damaged one."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        wrong = typed.problem(found, Manifest) or typed.problem(found.get("files"), list[_Listed], "files")
        wrong = wrong or (None if found else "it says nothing")
    except (OSError, ValueError) as error:
        wrong = str(error)
    if wrong:
        raise UserError(f"{path}: cannot be read as a manifest ({wrong}); delete it to run the stage again")
    return cast(Manifest, found)


def write(path: Path, spec: dict[str, Any], inputs: dict[str, Path], started: float, **facts: Any) -> None:
    """Write the manifest of a finished stage.

    Args:
        path: `<stage directory>/manifest.json`.
        spec: the stage as planned: `stage`, `fingerprint`, `config`, `inputs` (name -> fingerprint).
        inputs: name -> the manifest that was read.
        started: `time.time()` when the work began.
        facts: what the stage found out: `rows_in`, `rows_out`, `dropped`, `tokens`, ... `files` lists its files,
            `path` relative to the directory, and is every file there unless it is given; hashes are added.
    """
    path = Path(path)
    files = (
        describe(path.parent, own_files(path.parent)) if "files" not in facts else hashed(path.parent, facts["files"])
    )
    manifest = {
        "stage": spec["stage"],
        "fingerprint": spec["fingerprint"],
        "inputs": {
            name: {
                "fingerprint": spec["inputs"][name],
                "path": str(inputs[name]),
                "content": content(read(inputs[name])),
            }
            for name in inputs
        },
        "config": spec["config"],
        **facts,
        "files": files,
        "seconds": round(time.time() - started, 3),
        "versions": versions(),
        "git": code.state(path.parent),
        "code_sha256": code.sha256(),
        "host": socket.gethostname(),
        "user": user(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    manifest["checksum"] = checksum(manifest)
    write_atomically(path, text(manifest))


def text(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is written."""
    return json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"


def checksum(manifest: Mapping[str, Any]) -> str:
    """sha256 (hex) over everything else that a manifest says, as the file has it, where secrets are masked."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    plain = json.loads(mask(json.dumps(rest, ensure_ascii=False)))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def content(manifest: Mapping[str, Any]) -> str:
    """sha256 (hex) over names and hashes of a stage's files: what whoever read them has read."""
    return digest([[Path(file["path"]).name, file.get("sha256")] for file in manifest.get("files", [])])


def describe(directory: Path, paths: Iterable[Path]) -> list[File]:
    """`path`, `bytes` and `sha256` of files, hashed on every core of this job.

    A path is relative to the directory; an absolute one of another place, as the user's own data are, stays so.
    """
    found = list(paths)
    sizes = [path.stat().st_size for path in found]
    if sum(sizes) > _LONG_BYTES:
        print(f"hashing {sum(sizes) / 1e9:,.0f} GB in {len(found):,} files", flush=True)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        hashes = list(pool.map(file_sha256, found))
    within = directory.absolute()
    names = [
        str(path) if path.is_absolute() and not path.is_relative_to(within) else os.path.relpath(path, directory)
        for path in found
    ]
    return [
        {"path": name, "bytes": size, "sha256": sha256} for name, size, sha256 in zip(names, sizes, hashes, strict=True)
    ]


def hashed(directory: Path, files: list[File]) -> list[File]:
    """The same entries, each with `bytes` and `sha256`."""
    missing = [directory / file["path"] for file in files if "sha256" not in file]
    found = {str(directory / entry["path"]): entry for entry in describe(directory, missing)}
    return [
        {"bytes": (directory / file["path"]).stat().st_size} | file | found.get(str(directory / file["path"]), {})
        for file in files
    ]


def own_files(directory: Path) -> list[Path]:
    """Every file of a stage below its directory: not hidden ones, its `slurm/` and logs, nor another stage's within."""
    found = []
    for folder, inner, names in os.walk(directory):
        here = Path(folder)
        inner[:] = sorted(
            name
            for name in inner
            if not name.startswith((".", "__pycache__"))
            and not (here / name / NAME).is_file()
            and not (here == directory and name in ("slurm", "logs"))
        )
        found += [here / name for name in sorted(names) if not name.startswith(".") and not name.endswith(".tmp")]
    return [path for path in found if path.parent != directory or path.name not in (NAME, code.DIFF)]


def versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result."""
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def user() -> str:
    """Name of the user, or where the system has none the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
