"""The most memory that this process has held on its device since it was about to load its model."""

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Starts when it is made: after the imports, before the model.

    On a GPU, bytes of tensors as the allocator counts them. On the CPU, what the process has come to occupy beyond what it
    did at the start: the kernel's high-water mark of the resident set.
    """

    def __init__(self, config_class: type) -> None:
        """`config_class` is TRL's; its trainer's module comes along, so that what that takes is not counted."""
        import torch

        trainer = config_class.__module__.replace("_config", "_trainer")
        if importlib.util.find_spec(trainer):
            importlib.import_module(trainer)

        self.on_gpu = torch.cuda.is_available()
        self.device_name = torch.cuda.get_device_name() if self.on_gpu else "CPU"
        self._most = 0
        self._begin_again()
        self.before = _status().get("VmRSS", 0)

    @property
    def bytes(self) -> int | None:
        """The peak so far; None where the system does not tell."""
        peak = self._peak()
        return None if peak is None else max(self._most, peak)

    def since_last(self) -> int | None:
        """The peak since this was last asked; None where the system does not tell."""
        peak = self._peak()
        self._most = max(self._most, peak or 0)
        self._begin_again()
        return peak

    def _peak(self) -> int | None:
        if self.on_gpu:
            import torch

            return int(torch.cuda.max_memory_allocated())
        peak = _status().get("VmHWM")
        return None if peak is None else max(0, peak - self.before)

    def _begin_again(self) -> None:
        if self.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError):  # then the imports' own peak counts, which matters for tiny models alone
            _RESET.write_text("5")

    def facts(self, earlier: dict[str, Any]) -> dict[str, Any]:
        """`peak_memory_bytes` and `device_name` for a checkpoint's marker; `earlier` is that of the attempt before."""
        return {
            "peak_memory_bytes": max(self.bytes or 0, earlier.get("peak_memory_bytes") or 0) or None,
            "device_name": self.device_name,
        }


def _status() -> dict[str, int]:
    """`VmRSS` and the like in bytes; empty where there is no /proc."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.split(":", 1) for line in lines if line.endswith(" kB")]
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}
