"""What all ranks tell each other once a step: one small all-gather, which nothing waits for.

It carries the stop signals, the loss, the gradient's norm and what was seen of the data, so that every rank
takes the same decision at the same step. On the CPU it runs beside the optimizer's step and is read
at the end of the step. On a GPU, reading it there would wait for everything that is queued on the
device; so it is read at the end of the next step, when it has long been there, or before a save.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

FIELDS = ("signal", "rows", "digest", "loss", "grad_norm")


@dataclass(frozen=True)
class Record:
    """One step as all ranks saw it; each list has one entry a rank."""

    step: int
    signal: list[int]
    """Number of the stop signal that a rank has got, 0 for none."""
    rows: list[int]
    """Rows of the mix in a rank's micro-batches."""
    digest: list[int]
    """Sum of the rows' hashes modulo 2**64, as int64; see samples.py."""
    loss: list[float]
    """Sum over a rank's micro-batches of what TRL logs as the loss."""
    grad_norm: list[float]
    """Norm of the gradient over all ranks, before clipping; the same on all."""


class Exchange:
    """Gathers one row of FIELDS a rank and step."""

    def __init__(self, device: Any) -> None:
        """Make it with the trainer's device, on all ranks at the same place: it may form a group of its own."""
        import torch
        import torch.distributed as dist

        self.late = torch.device(device).type == "cuda"
        self.device = torch.device(device if self.late else "cpu")
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        # On the CPU a group of its own: the gather runs while others do. NCCL orders its work by stream.
        self.group = dist.new_group(backend="gloo") if self.world > 1 and not self.late else None
        self._pending: deque[tuple[int, Any, Any]] = deque()

    def start(self, step: int, signal: int, rows: int, digest: int, loss: Any, grad_norm: Any) -> None:
        """Send this rank's values for a step; `loss` and `grad_norm` may be on the device, and are not waited for."""
        import torch
        import torch.distributed as dist

        whole = torch.tensor([signal, rows, digest], dtype=torch.int64, pin_memory=self.late)
        reals = torch.stack(
            [torch.as_tensor(value).detach().to(self.device, torch.float64).reshape(()) for value in (loss, grad_norm)]
        )
        mine = torch.cat([whole.to(self.device, non_blocking=True), reals.view(torch.int64)])
        everyone = torch.empty(self.world * len(FIELDS), dtype=torch.int64, device=self.device)
        ready: Any = None
        if self.world == 1:
            everyone.copy_(mine)
        elif self.late:
            dist.all_gather_single(everyone, mine)
        else:
            ready = dist.all_gather_single(everyone, mine, group=self.group, async_op=True)
        if self.late:
            host = torch.empty(everyone.shape, dtype=torch.int64, pin_memory=True)
            host.copy_(everyone, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
            everyone = host
        self._pending.append((step, everyone, ready))

    def finish(self, everything: bool = False) -> list[Record]:
        """The records that are due: up to this step on the CPU, up to the one before on a GPU unless `everything`."""
        found = []
        while len(self._pending) > (1 if self.late and not everything else 0):
            step, values, ready = self._pending.popleft()
            if ready is not None:
                ready.synchronize() if self.late else ready.wait()
            found.append(_record(step, values.reshape(self.world, len(FIELDS))))
        return found


def _record(step: int, values: Any) -> Record:
    import torch

    signal, rows, digest = (values[:, column].tolist() for column in range(3))
    loss, grad_norm = (values[:, column].contiguous().view(torch.float64).tolist() for column in (3, 4))
    return Record(step, signal, rows, digest, loss, grad_norm)
