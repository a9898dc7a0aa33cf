"""On a GPU TRL's output layer and Liger's layers run Triton kernels. Here these run on a CPU, by Triton's interpreter.

Triton is not in the environment for CPUs, whose libraries would start more slowly and take it for a GPU's: it is
installed aside, and Liger with it, in the versions of the CUDA lock.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def triton():
    """A folder with Triton and Liger, and nothing else."""
    lock = (ROOT / "envs" / "lock-cuda.txt").read_text()
    wanted = re.findall(r"^(?:triton|liger_kernel)==\S+$", lock, re.MULTILINE)
    assert len(wanted) == 2
    folder = Path(tempfile.gettempdir()) / f"post-training-{'-'.join(wanted)}-{os.getuid()}".replace("==", "-")
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
            done = subprocess.run([*command, *wanted], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"Triton cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
            (folder / "complete").touch()
    return folder


@pytest.mark.slow
def test_it_computes_what_torch_computes(tmp_path, triton):
    """Log-probabilities, entropy and gradients; losses of SFT, DPO and KTO; the stored reference; Liger's layers."""
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(triton)]), "TRITON_INTERPRET": "1",
        "TRITON_CACHE_DIR": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": "", "POST_TRAINING_TEST_GPU": "cpu",
    }  # fmt: skip
    tests = ["tests/gpu/test_gpu_kernels.py", "tests/gpu/test_gpu_methods.py"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        f"--basetemp={tmp_path / 'tests'}",
    ]
    done = subprocess.run([*command, *tests], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is None or int(passed[1]) >= 18, done.stdout
