"""How large a model's weights are, and on which devices they are held for inference. No torch at import."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from post_training.core.errors import UserError

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
"""`model.dtype` -> Accelerate's name for it."""
_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
Tensors = dict[str, dict[str, Any]]
"""Name of a tensor -> its `dtype` as safetensors writes it, and its `shape`."""
_ROOM_BYTES = 2 << 30
"""Beside the weights: CUDA's context, the cache and the logits of one long answer. Batches are halved where they need more."""
_READ_AT_MOST_BYTES = 20 << 30
"""A model of 10 billion parameters in 16 bits."""
_AT_ONCE = 1 << 18
_SPREAD = 0.9
"""Share of several GPUs' memory that layers fill, which are not cut."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that Transformers would read, or the pickles where there are none. Raises UserError for a damaged index."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            problem = f"does not say in which files the tensors are ({type(error).__name__}: {error})"
            raise UserError(f"{index}: {problem}; copy it again") from None
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def read_header(path: Path) -> Tensors:
    """Names, types and shapes of a safetensors file's tensors. Raises SafetensorError when it is damaged."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: {"dtype": part.get_dtype(), "shape": part.get_shape()} for name, part in slices.items()}


def read_pickle(path: Path, device: str = "meta") -> dict[str, Any]:
    """Name -> tensor of a `pytorch_model.bin`, mapped into memory where its format allows it; only tensors are read. Raises UserError."""
    import zipfile
    from pickle import UnpicklingError

    import torch

    try:
        found: Any = torch.load(path, map_location=device, mmap=zipfile.is_zipfile(path), weights_only=True)
    except UnpicklingError:
        problem = "is damaged, or holds objects that could run code, and is not read"
        raise UserError(f"{path}: {problem}; get the model's safetensors, or copy the file again") from None
    other = (
        next((key for key, part in found.items() if not torch.is_tensor(part)), None) if isinstance(found, dict) else ""
    )
    if other is not None:
        problem = f"holds more than tensors ({other})" if other else "is no collection of tensors"
        raise UserError(f"{path}: {problem}, as a training's checkpoint does; save the model with save_pretrained")
    return dict(found)


def unequal(folder: Path, tied: dict[str, str]) -> tuple[str, str] | None:
    """The first two stored tensors that are one by `tied` (name -> name) and differ; None where there are none. Files are mapped into memory."""
    import torch
    from safetensors import safe_open

    found: dict[str, Any] = {}
    wanted = {*tied, *tied.values()}
    for path in weight_files(folder):
        if path.suffix == ".bin":
            found |= {name: tensor for name, tensor in read_pickle(path, "cpu").items() if name in wanted}
            continue
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in wanted.intersection(file.keys())}
    both = ((one, other) for one, other in tied.items() if one in found and other in found)
    return next(((a, b) for a, b in both if not torch.equal(found[a], found[b].to(found[a].dtype))), None)


def not_finite(folder: Path) -> str:
    """The first stored tensor with an infinite number or NaN; empty where there is none. Files are mapped into memory.

    Those of large models would take minutes, and are not read: training compares its first loss with the model's own.
    """
    from concurrent.futures import ThreadPoolExecutor

    files = weight_files(folder)
    if sum(path.stat().st_size for path in files) > _READ_AT_MOST_BYTES:
        return ""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # NumPy lets other threads run
        return next(filter(None, pool.map(_not_finite_of, files)), "")


def _not_finite_of(path: Path) -> str:
    from safetensors import safe_open

    if path.suffix == ".bin":
        return next((key for key, tensor in read_pickle(path, "cpu").items() if not _is_finite(tensor)), "")
    with safe_open(path, "pt") as file:
        return next((key for key in file.keys() if not _is_finite(file.get_tensor(key))), "")  # noqa: SIM118


def _is_finite(tensor: Any) -> bool:
    """Of floats in 16 or 32 bits: without the sign, the bits of infinities and NaN are the highest numbers. Others are taken to be."""
    import numpy as np
    import torch

    infinity = {torch.bfloat16: 0xFF00, torch.float16: 0xF800, torch.float32: 0xFF000000}.get(tensor.dtype)
    if infinity is None:
        return True
    kinds: Any = (torch.int16, np.uint16) if tensor.itemsize == 2 else (torch.int32, np.uint32)
    bits = tensor.contiguous().view(kinds[0]).numpy().view(kinds[1]).reshape(-1)
    shifted = np.empty(min(len(bits), _AT_ONCE), kinds[1])
    pieces = (bits[start : start + _AT_ONCE] for start in range(0, len(bits), _AT_ONCE))
    return all(int(np.left_shift(piece, 1, out=shifted[: len(piece)]).max()) < infinity for piece in pieces)


def shapes(path: Path) -> dict[str, list[int]]:
    """Name -> shape of the tensors of one file, safetensors or a pickle. Raises what its library does when it is damaged."""
    if path.suffix == ".bin":
        return {name: list(tensor.shape) for name, tensor in read_pickle(path).items()}
    return {name: facts["shape"] for name, facts in read_header(path).items()}


def weight_bytes(folder: Path, dtype: str = "auto") -> int:
    """Bytes of a model's weights in memory, loaded as `dtype`; `auto` = as they are stored.

    Raises UserError for a file that is cut off.
    """
    from safetensors import SafetensorError

    total = 0
    for path in weight_files(folder):
        if path.suffix == ".bin":
            total += path.stat().st_size
            continue
        try:
            tensors = read_header(path).values()
        except SafetensorError:
            raise UserError(f"{path}: is no safetensors file, or cut off; copy it again") from None
        for tensor in tensors:
            kind = _NAMES.get(tensor["dtype"], "")
            total += math.prod(tensor["shape"]) * BYTES.get(kind if dtype == "auto" or not kind else dtype, 1)
    return total


def inference_bytes(weights: int) -> int:
    """What generation takes at least, of weights of so many bytes."""
    return int(1.1 * weights) + _ROOM_BYTES


def gpus_needed(weights: int, memory: int) -> int:
    """GPUs of `memory` usable bytes each that hold a model for inference."""
    needed = inference_bytes(weights)
    return 1 if needed <= memory else math.ceil(needed / (_SPREAD * memory))


def devices_for(weights: int, free: Sequence[int]) -> list[int]:
    """The first GPUs that hold weights of so many bytes for inference; none = the CPU.

    Args:
        weights: bytes.
        free: free bytes of each visible GPU.
    """
    needed = inference_bytes(weights)
    if free and needed <= free[0]:
        return [0]
    several = (count for count in range(2, len(free) + 1) if needed <= _SPREAD * sum(free[:count]))
    return list(range(next(several, 0)))


def load_arguments(folder: Path, dtype: str = "auto") -> dict[str, Any]:
    """Arguments of `from_pretrained` that put a model where it fits: one GPU, several, or the CPU; said where it is not one GPU."""
    import torch

    from post_training.core.format import gib

    if not torch.cuda.is_available():
        return {}
    weights = weight_bytes(folder, dtype)
    free = [torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count())]
    devices = devices_for(weights, free)
    if not devices:
        have = " + ".join(map(gib, free))
        print(
            f"{folder}: weights of {gib(weights)} do not fit the GPUs ({have}): on the CPU, which is slow", flush=True
        )
        return {}
    if len(devices) == 1:
        return {"device_map": {"": 0}}
    print(f"{folder}: weights of {gib(weights)} over {len(devices)} GPUs", flush=True)
    room = _ROOM_BYTES // len(devices)
    return {"device_map": "auto", "max_memory": {device: free[device] - room for device in devices}}
