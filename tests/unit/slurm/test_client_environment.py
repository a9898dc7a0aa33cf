"""Slurm's commands do not see what a user has set for them in the shell."""

import os

import pytest

from post_training.run_dir import owner
from post_training.slurm import cluster, srun

HOSTILE = {
    "SQUEUE_PARTITION": "none", "SQUEUE_STATES": "SUSPENDED", "SQUEUE_USERS": "nobody", "SQUEUE_NAMES": "x", "SQUEUE_FORMAT": "%i",
    "SACCT_FORMAT": "user", "SCONTROL_ALL": "1", "SCANCEL_STATE": "PENDING", "SLURM_TIME_FORMAT": "relative",
}  # fmt: skip


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """Commands that print their environment; returns what the last one saw."""
    for name in ("squeue", "sacct", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\necho RUNNING\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {**HOSTILE, "SLURM_CONF": "/etc/slurm/slurm.conf", "SBATCH_ACCOUNT": "mine"}.items():
        monkeypatch.setenv(name, value)
    return lambda: dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: cluster.run("squeue"),
        lambda: cluster.run("sacct"),
        lambda: owner._slurm_state("1"),
        lambda: srun._output("scontrol", "show", "hostnames"),
    ],
    ids=["squeue", "sacct", "owner", "scontrol"],
)
def test_filters_of_the_shell_are_taken_away(seen, ask):
    ask()
    assert not HOSTILE.keys() & seen().keys()
    assert seen()["SLURM_CONF"] == "/etc/slurm/slurm.conf" and seen()["SBATCH_ACCOUNT"] == "mine"
