"""What the GPUs of a run have used, by the counter that NVIDIA's driver keeps (Volta and later).

It counts the whole board, so on a GPU that others use too their share is in it.
"""

import contextlib
from typing import Any


class Energy:
    """The counter of this rank's GPU from now on."""

    def __init__(self, device: Any) -> None:
        """`device` is the rank's torch.device."""
        self._board = _board(device)
        self._before = self._millijoules()

    @property
    def joules(self) -> float | None:
        """Since this was made; None without a GPU, or where the driver does not tell, as of a MIG slice."""
        now = self._millijoules()
        return None if now is None or self._before is None else (now - self._before) / 1000

    def facts(self, gather: Any, device: Any, earlier: dict[str, Any]) -> dict[str, Any]:
        """`energy_joules` of all ranks for a checkpoint's marker, None where a part of it is not known. Every rank must call it.

        Args:
            gather: the accelerator's.
            device: the rank's torch.device.
            earlier: the marker that this start was resumed from.
        """
        import torch

        own = torch.tensor([float("nan") if self.joules is None else self.joules], dtype=torch.float32, device=device)
        total = float(gather(own).sum())
        if total != total or (earlier and earlier.get("energy_joules") is None):
            return {"energy_joules": None}
        return {"energy_joules": round(total + (earlier.get("energy_joules") or 0.0), 1)}

    def _millijoules(self) -> int | None:
        if self._board is None:
            return None
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._board))
        return None


def _board(device: Any) -> Any:
    """NVML's handle of a CUDA device; None where there is none. By its identity: CUDA's numbers are not NVML's."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    import torch

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return None
