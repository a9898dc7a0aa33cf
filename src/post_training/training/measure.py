"""Tokens, time, energy and peak memory of a run, over all its ranks and attempts."""

import contextlib
import importlib.util
import time
from pathlib import Path
from typing import Any

import torch

from post_training.data.deal import imbalance
from post_training.training.ranks import gather
from post_training.training.step_samples import Seen

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class TokenCounter:
    """Adds up what the collator has counted of each micro-batch, and over ranks when asked.

    `tokens` are all that are not padding; `trained_tokens` those with a label (SFT) or in an answer (DPO: of both).
    """

    def __init__(self, in_logs: bool = True, earlier: dict[str, Any] | None = None) -> None:
        """`in_logs`: whether logs get the counts; `earlier`: the marker of the checkpoint that the run resumes from."""
        earlier = earlier or {}
        self.in_logs = in_logs
        self.tokens, self.trained_tokens = int(earlier.get("tokens") or 0), int(earlier.get("trained_tokens") or 0)
        self.tokens_per_second = 0.0
        self._seconds_before = float(earlier.get("seconds") or 0.0)
        self._own = Seen()
        self._padding, self._imbalances = 0, list[float]()
        self.start()

    def start(self) -> None:
        """The clock runs from now on: the model is loaded."""
        self._started = time.monotonic()
        self._last_log = (self.tokens, self.seconds)

    def leave_out(self, seconds: float) -> None:
        """Seconds that were not spent on training, such as an evaluation's."""
        self._started += seconds

    @property
    def seconds(self) -> float:
        """Training time of all attempts that the current weights come from."""
        return self._seconds_before + time.monotonic() - self._started

    def count(self, seen: Seen) -> None:
        """Add a micro-batch of this rank."""
        self._own += Seen(tokens=seen.tokens, trained_tokens=seen.trained_tokens, padding=seen.padding)

    def step(self, tokens: list[int]) -> None:
        """Note how many tokens each rank had in a step."""
        self._imbalances.append(imbalance(tokens))

    def totals(self) -> dict[str, Any]:
        """Counts over all ranks, for a checkpoint's marker. Every rank must call it."""
        own, self._own = self._own, Seen()
        counts = gather(torch.tensor([own.tokens, own.trained_tokens, own.padding])).sum(0).tolist()
        self.tokens, self.trained_tokens = self.tokens + counts[0], self.trained_tokens + counts[1]
        self._padding += counts[2]
        return {"tokens": self.tokens, "trained_tokens": self.trained_tokens, "seconds": round(self.seconds, 3)}

    def add_to(self, logs: dict[str, float]) -> None:
        """Add the counts and the rate since the last log. Every rank must call it."""
        self.totals()
        (tokens, seconds), self._last_log = self._last_log, (self.tokens, self.seconds)
        real, padding, imbalances = self.tokens - tokens, self._padding, self._imbalances
        self.tokens_per_second = real / max(self._last_log[1] - seconds, 1e-9)
        self._padding, self._imbalances = 0, []
        if self.in_logs:
            logs |= {"tokens": self.tokens, "trained_tokens": self.trained_tokens}
            logs["tokens_per_second"] = round(self.tokens_per_second, 1)
            logs["padding_share"] = round(padding / max(real + padding, 1), 4)
            logs["rank_imbalance"] = round(sum(imbalances) / max(len(imbalances), 1), 4)


class PeakMemory:
    """Peak memory of a device, the largest of all ranks; starts when it is made: after the imports, before the model.

    On a GPU, what PyTorch's allocator has given to tensors (allocated) and has taken from the device (reserved: what runs
    out). On the CPU, how much the process has grown since the start, by the kernel's high-water mark of the resident set.
    """

    def __init__(self, config_class: type) -> None:
        """`config_class` is TRL's; its trainer's module is imported here, so that its memory is not counted."""
        trainer = config_class.__module__.replace("_config", "_trainer")
        if importlib.util.find_spec(trainer):
            importlib.import_module(trainer)
        self.on_gpu = torch.cuda.is_available()
        self.device_name = torch.cuda.get_device_name() if self.on_gpu else "CPU"
        self._largest: dict[str, int] = {}
        self._reset()
        self.before = _memory_status().get("VmRSS", 0)

    def so_far(self) -> dict[str, int]:
        """The peak since the start, with the keys of `since_last`. Every rank must call it."""
        self._note()
        return _largest_of_ranks(self._largest)

    def since_last(self) -> dict[str, int]:
        """`peak_memory_bytes` since the last call, and `peak_reserved_bytes` on a GPU; empty where it is not known.

        Every rank must call it.
        """
        peak = self._note()
        self._reset()
        return _largest_of_ranks(peak)

    def facts(self, earlier: dict[str, Any]) -> dict[str, Any]:
        """`so_far` and `device_name` for a checkpoint's marker; `earlier` is the marker that the run resumed from."""
        peak = {name: max(size, earlier.get(name) or 0) or None for name, size in self.so_far().items()}
        return {"peak_memory_bytes": None, **peak, "device_name": self.device_name}

    def _note(self) -> dict[str, int]:
        """The peak on this rank since the last reset."""
        if self.on_gpu:
            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            peak = {"peak_memory_bytes": allocated, "peak_reserved_bytes": reserved}
        else:
            high = _memory_status().get("VmHWM")
            peak = {} if high is None else {"peak_memory_bytes": max(0, high - self.before)}
        self._largest = {name: max(size, self._largest.get(name, 0)) for name, size in peak.items()}
        return peak

    def _reset(self) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError):  # then the imports' own peak counts, which matters for tiny models only
            _RESET.write_text("5")


def _largest_of_ranks(sizes: dict[str, int]) -> dict[str, int]:
    return dict(zip(sizes, gather(torch.tensor(list(sizes.values()), dtype=torch.int64)).amax(0).tolist(), strict=True))


def _memory_status() -> dict[str, int]:
    """`VmRSS` and the like in bytes; empty where there is no /proc."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.split(":", 1) for line in lines if line.endswith(" kB")]
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


class Energy:
    """What this rank's GPU uses from now on, by the counter of NVIDIA's driver (Volta and later).

    It counts the whole board, so on a GPU that others use too, their share is included.
    """

    def __init__(self, device: torch.device) -> None:
        self._board = _nvml_board(device)
        self._before = self._millijoules()

    @property
    def joules(self) -> float | None:
        """Since this was made; None without a GPU, or where the driver does not report it, as for a MIG slice."""
        now = self._millijoules()
        return None if now is None or self._before is None else (now - self._before) / 1000

    def facts(self, earlier: dict[str, Any]) -> dict[str, Any]:
        """`energy_joules` of all ranks for a checkpoint's marker, None where a part of it is not known.

        Every rank must call it. `earlier` is the marker that the run resumed from.
        """
        own = float("nan") if self.joules is None else self.joules
        total = float(gather(torch.tensor([own], dtype=torch.float64)).sum())
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


def _nvml_board(device: torch.device) -> Any:
    """NVML's handle of a CUDA device; None where there is none. By UUID, because CUDA's numbers are not NVML's."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return None
