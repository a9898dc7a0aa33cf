"""What a GPU and its node must have: a driver for the CUDA of this PyTorch, kernels for the device, and a compiler for Triton.

A login node can be another kind of machine than the one that trains, so these are looked up where the GPU is: by the
preflight on a machine that trains by itself, and by the probe in an allocation. What the name of the device tells is checked in both.
"""

import json
import re
from pathlib import Path

from post_training.core import devices, manifest
from post_training.preflight.check import Check, check
from post_training.preflight.subject import Subject

UNKNOWN = "not checked here, but by `snakemake preflight_probe`, on a node with a GPU"
_BACKENDS = {"flash_attention_2": 8, "flash_attention_3": 8, "flash_attention_4": 9}
"""Attention package -> the oldest major compute capability that it, or Transformers for it, takes."""


def checks(subject: Subject) -> list[Check]:
    """Every check of one stage."""
    if subject.topology.device != "GPU":
        return [Check(f"gpu.{name}", "no GPU is used") for name in ("driver", "capability", "compiler")]
    return [_driver(subject), _capability(subject), _compiler(subject)]


def _driver(subject: Subject) -> Check:
    """Whether the driver serves the CUDA that PyTorch is built for, and PyTorch finds a GPU."""
    node, name = subject.node, "gpu.driver"
    if node is None:
        return Check(name, UNKNOWN)
    build = f"CUDA {node.cuda}" if node.cuda else f"ROCm {node.hip}" if node.hip else "the CPU alone"
    value = f"PyTorch {node.torch} for {build}"
    remedy = "`make install BUILD=cuda`, or BUILD=site on a PyTorch of the site's"
    if node.driver:
        value += f", driver {node.driver}" + (f" for CUDA {node.driver_cuda} at most" if node.driver_cuda else "")
    old = node.cuda and node.driver_cuda and int(node.cuda.split(".")[0]) > int(node.driver_cuda.split(".")[0])
    if old:
        remedy = f"a newer driver, or a PyTorch for CUDA {node.driver_cuda}: `make install BUILD=site` on top of it"
    elif not node.usable and node.cuda:
        value += ", which finds no GPU"
        remedy = "see what `nvidia-smi` says there, and CUDA_VISIBLE_DEVICES"
    return check(name, value, fails=old or not node.usable, remedy=remedy)


def _capability(subject: Subject) -> Check:
    """Whether the device can do what is asked: number format, attention, and the kernels of PyTorch itself."""
    node, name = subject.node, "gpu.capability"
    capability = node.capability if node else None
    known = devices.by_words(subject.device.name) or subject.device.name
    capability = capability or devices.CAPABILITIES.get(known.partition("-")[0])
    if capability is None:
        amd = known.startswith("mi") or (node is not None and node.hip)
        return Check(name, "an AMD GPU: PyTorch says what it can do" if amd else UNKNOWN)
    shown, problems = ".".join(map(str, capability)), []
    if subject.view["model"]["dtype"] == "bfloat16" and capability < (8, 0):
        problems.append("bfloat16 needs 8.0: set model.dtype=float16")
    least = _BACKENDS.get(subject.attention, 0)
    if capability[0] < least:
        problems.append(f"{subject.attention} needs {least}.0: set model.attn_implementation=auto")
    if subject.kernel is not None and (built := _kernel_archs(subject.kernel)) and not _runs(built, capability):
        problems.append(
            f"the kernel {subject.attention} is built for {', '.join(built)}: set model.attn_implementation=auto"
        )
    if node is not None and node.archs and not _runs([_dotted(arch) for arch in node.archs], capability):
        problems.append(
            f"PyTorch {node.torch} has kernels for {', '.join(node.archs)}: take one that has this device's"
        )
    return check(name, f"compute capability {shown}", fails=problems, remedy="; ".join(problems))


def _compiler(subject: Subject) -> Check:
    """What compiles at the start of a run: Triton, for TRL's output layer and Liger, and DeepSpeed's optimizer on the CPU."""
    node, name = subject.node, "gpu.compiler"
    if node is None:
        return Check(name, UNKNOWN)
    missing = [] if "cc" in node.compilers else ["a C compiler (gcc)"]
    missing += [] if node.python_h else ["Python.h, of the package python3-dev or python3-devel"]
    if (subject.zero.get("offload_optimizer") or {}).get("device") == "cpu":
        missing += [
            f"{word}, for DeepSpeed's offload_optimizer" for word in ("c++", "ninja") if word not in node.compilers
        ]
    return check(
        name,
        f"{' and '.join(missing)} not found" if missing else "a C compiler and Python.h, for Triton",
        fails=missing,
        remedy="install it where GPU jobs run, load a module with it (slurm.modules), or set CC",
    )


def _kernel_archs(kernel: Path) -> list[str]:
    """The capabilities that the builds of a Hub kernel name, such as `9.0a`; empty where they name none."""
    found = manifest.read(kernel)
    folder = kernel.parent / found["kernels"][found["repository"]] / "build"
    named: list[str] = []
    for build in found["builds"]:
        backend = json.loads((folder / build / "metadata.json").read_text(encoding="utf-8")).get("backend") or {}
        named += (backend.get("archs") or []) if backend.get("type") == "cuda" else []
    return sorted(set(named))


def _dotted(arch: str) -> str:
    """`sm_90a` -> `9.0a`, `compute_120` -> `12.0+PTX`."""
    kind, _, number = arch.partition("_")
    digits = re.match(r"\d+", number)
    if digits is None:
        return ""
    whole = digits[0]
    return f"{whole[:-1]}.{whole[-1]}{number[len(whole) :]}" + ("+PTX" if kind == "compute" else "")


def _runs(archs: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for one of these runs on a device: of its generation and no newer, or PTX, which is compiled for newer ones."""
    for arch in archs:
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        if found is None:
            return True  # of a form that is not known here
        built = int(found[1]), int(found[2])
        if built == capability or (found[4] and built <= capability):
            return True
        if found[3] != "a" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
    return False
