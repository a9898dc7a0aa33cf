"""Copies of this project on disk, and its commands as a person types them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = ("Snakefile", "workflow", "profiles", "config", "envs", "src")


def copy_project(folder: Path) -> Path:
    for name in PROJECT:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(
                REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        else:
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


def environment(project: Path, **more: str) -> dict[str, str]:
    """For processes that use the project's own code, offline and without a GPU."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {"PATH": path, "PYTHONPATH": str(project / "src"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, "OMP_NUM_THREADS": "1", **settings, **more}


def run(project: Path, *command: str, **more: str) -> subprocess.CompletedProcess:
    """A command in a project; what it said is in `stdout`."""
    return subprocess.run(
        command,
        cwd=project,
        env=environment(project, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def git(project: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *words], cwd=project, check=True, capture_output=True, text=True)
    return done.stdout
