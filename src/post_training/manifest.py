"""A stage's manifest: small, written last, so its existence means that the stage is whole. Light."""

import getpass
import importlib.metadata
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from post_training.errors import UserError
from post_training.fingerprint import write_atomically

_VERSIONS = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "fastokens",
    "deepspeed",
    "pyarrow",
    "snakemake",
)


def read(path: Path) -> dict[str, Any]:
    """A manifest as written; a missing or damaged one is the user's to know about."""
    try:
        manifest = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a manifest ({error}); delete it to run the stage again") from None
    return dict(manifest)


def write(path: Path, spec: dict[str, Any], inputs: dict[str, Path], started: float, **facts: Any) -> None:
    """Write the manifest of a finished stage.

    Args:
        path: `<stage directory>/manifest.json`.
        spec: the stage as planned: `stage`, `fingerprint`, `config`, `inputs` (name -> fingerprint).
        inputs: name -> the manifest that was read.
        started: `time.time()` when the work began.
        facts: what the stage found out: `rows_in`, `rows_out`, `dropped`, `tokens`, `files`, ...
    """
    manifest = {
        "stage": spec["stage"],
        "fingerprint": spec["fingerprint"],
        "inputs": {name: {"fingerprint": spec["inputs"][name], "path": str(inputs[name])} for name in inputs},
        "config": spec["config"],
        **facts,
        "seconds": round(time.time() - started, 3),
        "versions": versions(),
        "git": git_state(),
        "host": socket.gethostname(),
        "user": _user(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_atomically(Path(path), json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result."""
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of the workflow's own checkout and whether it has uncommitted changes; None outside of git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
