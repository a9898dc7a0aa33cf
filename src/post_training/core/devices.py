"""What a training device can hold and compute, by the name that people give it. Light.

Memory is what the vendor prints on it; peak is dense bfloat16 throughput without sparsity, from the vendors'
data sheets. A100-64 and H100-64 are the custom boards of Leonardo and MareNostrum 5; an MI250X counts as the two devices that it
shows.
"""

import glob
import os
import re
from dataclasses import dataclass
from typing import Any

from post_training.core.errors import ConfigError, did_you_mean

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """One device of a run."""

    name: str
    memory_bytes: int | None
    """None where it is not known."""
    peak_flops: float | None
    """Operations a second in bfloat16."""
    source: str = ""
    """Who says so."""


# Name -> GiB, dense bfloat16 TFLOPS.
KNOWN: dict[str, tuple[float, float]] = {
    "v100-16": (16, 125), "v100-32": (32, 125), "a10": (24, 125), "a30": (24, 165), "a40": (48, 150), "a6000": (48, 155),
    "a100-40": (40, 312), "a100-64": (64, 312), "a100-80": (80, 312), "l4": (24, 121), "l40s": (48, 362), "rtx4090": (24, 165),
    "h100-64": (64, 989), "h100-80": (80, 989), "h100-94": (94, 989), "h200": (141, 989), "gh200": (96, 989), "b200": (180, 2250),
    "mi210": (64, 181), "mi250x": (64, 191), "mi300a": (128, 980), "mi300x": (192, 1307),
}  # fmt: skip
# What drivers, other processes and the allocator keep for themselves.
USABLE = 0.94


def known_gpu(name: str) -> Device:
    """A device of the table. Raises ConfigError for `slurm.gpu_model`."""
    if name not in KNOWN:
        raise ConfigError("slurm.gpu_model", f"found {name!r}. {did_you_mean(name, KNOWN)}")
    gib, teraflops = KNOWN[name]
    return Device(name, int(gib * GIB), teraflops * 1e12, "slurm.gpu_model")


def by_words(text: str) -> str | None:
    """The entry that a driver's or a cluster's name for a GPU means: `NVIDIA H100 80GB HBM3`, `gpu:a100:4`."""
    words = re.sub(r"[^a-z0-9]+", " ", text.lower())
    families = sorted({name.partition("-")[0] for name in KNOWN}, key=len, reverse=True)
    compact = words.replace(" ", "")
    family = next((name for name in families if name in compact), None)
    if family is None:
        return None
    sizes = [name for name in KNOWN if name.partition("-")[0] == family]
    told = set(re.findall(r"\d+", words))
    named = [name for name in sizes if name.partition("-")[2] in told]
    return named[0] if named else sizes[0] if len(sizes) == 1 else None


def on_slurm(view: dict[str, Any], gres: list[str]) -> Device:
    """The GPUs of an allocation: as the configuration says, or as the partition's `gres` do."""
    if view["slurm"]["gpu_model"]:
        return known_gpu(view["slurm"]["gpu_model"])
    names = {by_words(entry) for entry in gres} - {None}
    if len(names) == 1:
        name = str(names.pop())
        gib, teraflops = KNOWN[name]
        return Device(name, int(gib * GIB), teraflops * 1e12, "the partition's gres")
    return Device("unknown GPU", None, None)


def here(kind: str) -> Device:
    """A device of this machine. `kind`: `GPU` or `CPU`, whose ranks share the memory."""
    if kind == "CPU":
        return Device("CPU", memory_limit(), cpu_flops(), "this machine")
    import torch

    if not torch.cuda.is_available():
        return Device("unknown GPU", None, None)
    properties = torch.cuda.get_device_properties(0)
    name = by_words(f"{properties.name} {round(properties.total_memory / GIB)}")
    peak = KNOWN[name][1] * 1e12 if name else None
    return Device(properties.name, properties.total_memory, peak, "this machine")


def memory_limit() -> int:
    """Bytes that processes here may use: the machine's, or what its control group allows."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def cpu_flops(size: int = 512) -> float:
    """Operations a second of this process in a float32 matrix product, best of three: what a CPU can be expected to do."""
    import time

    import torch

    first, second = torch.ones(size, size), torch.ones(size, size)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(first, second)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / max(min(seconds[1:]), 1e-9)


def count_gpus() -> int:
    """GPUs that a process started here would see; without torch, because planning must stay light."""
    for variable in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        visible = os.environ.get(variable)
        if visible is not None:
            return len([part for part in visible.split(",") if part.strip() not in ("", "-1", "NoDevFiles")])
    nvidia = len(glob.glob("/proc/driver/nvidia/gpus/*"))
    if nvidia:
        return nvidia
    amd = 0
    for path in glob.glob("/sys/class/kfd/kfd/topology/nodes/*/gpu_id"):
        with open(path) as handle:
            amd += handle.read().strip() not in ("", "0")
    return amd
