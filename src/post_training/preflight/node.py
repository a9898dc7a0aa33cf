"""The machine that a GPU job runs on, as it is found: its driver, PyTorch, devices and compilers."""

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from post_training.core.devices import nvidia_smi


@dataclass(frozen=True)
class Node:
    """What was found on the machine that a GPU job runs on."""

    torch: str
    """Version of PyTorch."""
    cuda: str | None
    """The CUDA that PyTorch is built for, `13.0`; None for ROCm and the CPU."""
    hip: str | None
    """The same for ROCm."""
    archs: tuple[str, ...]
    """Architectures that PyTorch has kernels for: `sm_80`, `compute_120`, ..."""
    usable: bool
    """Whether PyTorch finds a GPU."""
    driver: str | None
    """Version of NVIDIA's driver, as `nvidia-smi` says; None without one."""
    driver_cuda: str | None
    """The newest CUDA that it serves."""
    capability: tuple[int, int] | None
    """Compute capability of the first GPU."""
    compilers: tuple[str, ...]
    """Which of a C compiler (`cc`), `c++` and `ninja` are there."""
    python_h: bool
    """Whether the headers of this Python are there."""


def this_node() -> Node:
    """Look this machine over."""
    import torch

    driver, driver_cuda, capability = _nvidia_smi()
    usable = torch.cuda.is_available()
    if usable and torch.version.cuda:
        capability = torch.cuda.get_device_capability(0)
    wanted = {"cc": (os.environ.get("CC") or "cc", "gcc", "clang"), "c++": ("c++", "g++"), "ninja": ("ninja",)}
    include = sysconfig.get_paths()["include"]
    flags = torch._C._cuda_getArchFlags() if torch.version.cuda else ""  # also without a device
    return Node(
        torch=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        archs=tuple((flags or "").split()),
        usable=usable,
        driver=driver,
        driver_cuda=driver_cuda,
        capability=capability,
        compilers=tuple(name for name, words in wanted.items() if any(map(shutil.which, words))),
        python_h=(Path(include) / "Python.h").is_file(),
    )


def _nvidia_smi() -> tuple[str | None, str | None, tuple[int, int] | None]:
    """Version of the driver, the newest CUDA that it serves, and the capability of the first GPU; None for what is not said."""
    said = []
    for options in ([], ["--query-gpu=compute_cap", "--format=csv,noheader"]):
        try:
            done = subprocess.run([nvidia_smi(), *options], capture_output=True, text=True, timeout=60)
            said.append(done.stdout)
        except (OSError, subprocess.SubprocessError):
            return None, None, None
    driver, cuda = (re.search(rf"{name} Version: *([\d.]+)", said[0]) for name in ("Driver", "CUDA"))
    found = re.match(r"(\d+)\.(\d+)", said[1].strip())
    capability = (int(found[1]), int(found[2])) if found else None
    return driver and driver[1], cuda and cuda[1], capability
