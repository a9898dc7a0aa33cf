"""Memory and peak throughput of training devices, by the names that users, drivers and clusters give them.

Memory is what the vendor prints on it; peak is dense bfloat16 throughput without sparsity, from the vendors' data sheets
(NVIDIA A100, H100, L4, L40, L40S, RTX 4090, GH200, B200 and GB200 NVL72; AMD Instinct MI200 and MI300). The V100 has no
bfloat16: its float16. The PCIe and NVL boards of the H100 clock lower than the SXM one. A100-64 and H100-64 are the custom
boards of Leonardo and MareNostrum 5; an MI250X counts as the two devices that it shows.
"""

import glob
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, takewhile
from typing import Any

from post_training.core.errors import ConfigError, did_you_mean
from post_training.core.format import GIB

USABLE = 0.94
"""Share of a device's memory that drivers, other processes and the allocator leave."""


@dataclass(frozen=True)
class Device:
    """One device of a run."""

    name: str
    memory_bytes: int | None = None
    """None where it is not known."""
    peak_flops: float | None = None
    """Operations a second in bfloat16."""


# Name -> GiB, dense bfloat16 TFLOPS. A name is `<family>` or `<family>-<variant>`; the first variant that a text has counts.
KNOWN: dict[str, tuple[float, float]] = {
    "v100-16": (16, 125), "v100-32": (32, 125), "a10": (24, 125), "a30": (24, 165), "a40": (48, 150), "a6000": (48, 155),
    "a100-40": (40, 312), "a100-64": (64, 312), "a100-80": (80, 312), "l4": (24, 121), "l40": (48, 181), "l40s": (48, 362),
    "rtx4090": (24, 165), "h100-pcie": (80, 756), "h100-94": (94, 835), "h100-64": (64, 989), "h100-80": (80, 989),
    "h200": (141, 989), "gh200": (96, 989), "b200": (180, 2250), "gb200": (186, 2500),
    "mi210": (64, 181), "mi250x": (64, 191), "mi300a": (128, 980), "mi300x": (192, 1307),
}  # fmt: skip
CAPABILITIES: dict[str, tuple[int, int]] = {
    "v100": (7, 0), "a10": (8, 6), "a30": (8, 0), "a40": (8, 6), "a6000": (8, 6), "a100": (8, 0), "l4": (8, 9), "l40": (8, 9),
    "l40s": (8, 9), "rtx4090": (8, 9), "h100": (9, 0), "h200": (9, 0), "gh200": (9, 0), "b200": (10, 0), "gb200": (10, 0),
}  # fmt: skip
"""Compute capabilities of NVIDIA's families, from its table at developer.nvidia.com/cuda-gpus."""
_UNKNOWN = Device("unknown GPU")
_WSL_SMI = "/usr/lib/wsl/lib/nvidia-smi"


def known_gpu(name: str) -> Device:
    """A device of the table. Raises ConfigError for `slurm.gpu_model`."""
    if name not in KNOWN:
        family = re.split(r"[^a-z0-9]", name.lower())[0]
        boards = [one for one in KNOWN if one.partition("-")[0] == family]
        offered = f"Of the {family} there are {', '.join(boards)}" if len(boards) > 1 else did_you_mean(name, KNOWN)
        raise ConfigError("slurm.gpu_model", f"found {name!r}. {offered}")
    gib, teraflops = KNOWN[name]
    return Device(name, int(gib * GIB), teraflops * 1e12)


def by_words(text: str) -> str | None:
    """The entry for a driver's or a cluster's name of a GPU: `NVIDIA H100 80GB HBM3`, `gpu:a100:4`; None if it is ambiguous."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    families = {*words, *(first + second for first, second in pairwise(words))}  # `RTX 4090`
    variants = {*words, *(number for word in words for number in re.findall(r"\d+", word))}
    variants |= {"94"} if "nvl" in words else set()
    entries = {name: name.partition("-")[2] for name in KNOWN if name.partition("-")[0] in families}
    named = [name for name, variant in entries.items() if variant in variants]
    return named[0] if named else next(iter(entries)) if len(entries) == 1 else None


def on_slurm(view: dict[str, Any], gres: list[str]) -> Device:
    """The GPUs of an allocation: as the configuration says, or as the partition's `gres` do.

    Raises ConfigError for `slurm.gpu_model`.
    """
    if view["slurm"]["gpu_model"]:
        return known_gpu(view["slurm"]["gpu_model"])
    names = {name for entry in gres if (name := by_words(entry))}
    return known_gpu(names.pop()) if len(names) == 1 else _UNKNOWN


def here(kind: str) -> Device:
    """A device of this machine. `kind`: `GPU` or `CPU`, whose ranks share the memory."""
    if kind == "CPU":
        return Device("CPU", memory_limit(), cpu_flops())
    import torch

    if not torch.cuda.is_available():
        return _UNKNOWN
    properties = torch.cuda.get_device_properties(0)
    name = by_words(f"{properties.name} {round(properties.total_memory / GIB)}")
    return Device(properties.name, properties.total_memory, known_gpu(name).peak_flops if name else None)


def memory_limit() -> int:
    """Bytes that processes here may use: the machine's, or what its control group allows."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def cpu_flops() -> float:
    """Operations a second of this process in a float32 matrix product, best of three: what a CPU can be expected to do."""
    import torch

    size = 512
    first, second = torch.ones(size, size), torch.ones(size, size)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(first, second)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / max(min(seconds[1:]), 1e-9)


def count_gpus() -> int:
    """GPUs that a process started here would see; without torch, because planning must stay fast."""
    listed = [os.environ.get(f"{name}_VISIBLE_DEVICES") for name in ("CUDA", "ROCR", "HIP")]
    # Each leaves what the others have left; drivers read a list up to the first entry that is no device.
    counts = [
        len(list(takewhile(lambda part: part.strip() not in ("", "-1", "NoDevFiles"), visible.split(","))))
        for visible in listed
        if visible is not None
    ]
    if counts:
        return min(counts)
    # A sandbox may hide the driver's folder, and WSL has neither it nor the device files.
    nvidia = len(glob.glob("/proc/driver/nvidia/gpus/*")) or len(glob.glob("/dev/nvidia[0-9]*")) or _gpus_of_wsl()
    if nvidia:
        return nvidia
    amd = 0
    # A container sees the list also of what it was not given; then the device file is missing.
    for path in glob.glob("/sys/class/kfd/kfd/topology/nodes/*/gpu_id") if os.path.exists("/dev/kfd") else ():
        with open(path) as handle:
            amd += handle.read().strip() not in ("", "0")
    return amd


@cache
def _gpus_of_wsl() -> int:
    """NVIDIA's GPUs in the Windows Subsystem for Linux, which `nvidia-smi` alone counts there."""
    if not os.path.exists("/dev/dxg"):
        return 0
    try:
        done = subprocess.run([nvidia_smi(), "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def nvidia_smi() -> str:
    """The driver's program: of the PATH, or where WSL has it, which is not in every PATH."""
    return shutil.which("nvidia-smi") or (_WSL_SMI if os.path.exists(_WSL_SMI) else "nvidia-smi")
