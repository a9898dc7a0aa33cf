import subprocess
import sys
from pathlib import Path

import pytest
from harness import run


@pytest.mark.slow
def test_killed_at_twenty_moments_nothing_is_lost(tmp_path):
    """Of two ranks, whose starts are half of four's; what only more than two show is in training/test_buckets.py."""
    assert run(kills=20, seed=1, folder=tmp_path, ranks=2)


def test_sampling_killed_at_random_moments_ends_with_the_same_bytes(tmp_path):
    """In a process of its own, which forks: this one may have threads."""
    code = (
        "import pathlib, sys; sys.path[:0] = sys.argv[2:]; import sampling; folder = pathlib.Path(sys.argv[1])\n"
        "sys.exit(not sampling.run(kills=6, seed=1, folder=folder, by_snakemake=False, kills_per_run=3))"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(tmp_path / "runs"), str(here), str(here.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical: 6/6" in done.stdout
