"""The tensors of an export against those that were trained, bit for bit and one at a time: no forward pass, no second model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from post_training.core.errors import UserError
from post_training.models.weights import weight_files


class StoredTensors(Mapping[str, Any]):
    """Name -> tensor of a folder's safetensors files, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._files: dict[str, Path] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def __getitem__(self, name: str) -> Any:
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def compare(folder: Path, trained: Mapping[str, Any], tied: set[str], *, renamed: bool = False) -> dict[str, int]:
    """How many tensors of an export are those that were trained, rounded to its number format.

    Args:
        folder: the export.
        trained: name -> tensor.
        tied: names of tensors that are another one, and may be left out.
        renamed: whether the architecture may store tensors under other names than it holds them under, which are counted
            as `tensors_not_compared`.

    Raises:
        UserError: for one that differs, is missing, or has NaN or infinity.
    """
    exported = StoredTensors(folder)
    unknown = [name for name in exported if name not in trained]
    missing = [name for name in trained if name not in exported and name not in tied]
    if (unknown or missing) and not (renamed and unknown):
        what = f"{missing[0]} is missing" if missing else f"{unknown[0]} was not trained"
        raise UserError(f"{folder}: the tensor {what}; the export does not hold what the checkpoint does")
    for name in exported:
        found = exported[name]
        if found.is_floating_point() and not bool(found.isfinite().all()):
            raise UserError(f"{folder}: {name} has NaN or infinity; see the run's losses")
        if name in trained and not _same(found, trained[name]):
            raise UserError(f"{folder}: {name} differs from the tensor that was trained; export the run again")
    counts = {"tensors": len(exported) - len(unknown)}
    return counts | ({"tensors_not_compared": len(unknown)} if unknown else {})


def _same(found: Any, trained: Any) -> bool:
    import torch

    expected = trained.detach().to("cpu").to(found.dtype)
    if found.shape != expected.shape:
        return False
    return torch.equal(*(one.contiguous().reshape(-1).view(torch.uint8) for one in (found, expected)))
