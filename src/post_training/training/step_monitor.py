"""Checks of each step over all ranks: stop requests, NaN and Inf, loss spikes, and which rows were seen."""

import math
import signal
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from post_training.core.errors import UserError
from post_training.run_dir.failures import PeerError
from post_training.run_dir.stop import StopRequest, decisive
from post_training.training.measure import TokenCounter
from post_training.training.ranks import gather
from post_training.training.step_samples import SamplesLog, Seen

_SHOWN = 16


@dataclass(frozen=True)
class StepRecord:
    """One step over all ranks; each list has one entry a rank."""

    step: int
    signal: list[int]
    """Number of the stop signal that a rank has received, 0 for none."""
    rows: list[int]
    """How many rows of the mix were in a rank's micro-batches."""
    digest: list[int]
    """Sum of the rows' hashes modulo 2**64, as int64; see step_samples.py."""
    tokens: list[int]
    """How many tokens, without padding, a rank's micro-batches had."""
    loss: list[float]
    """Sum over a rank's micro-batches of what TRL logs as the loss."""
    grad_norm: list[float]
    """Norm of the gradient over all ranks, before clipping; the same on all."""


class StepMonitor(TrainerCallback):
    """Gathers each step's record and acts on it, so that all ranks take the same decision at the same step.

    `training/trainer.py` feeds it. It must come before the callbacks that save: a bad step must not be saved.
    """

    def __init__(
        self,
        device: torch.device,
        request: StopRequest,
        origins: Callable[[int], list[str]],
        samples: SamplesLog | None = None,
        spikes: "SpikeRule | None" = None,
        tokens: TokenCounter | None = None,
    ) -> None:
        """Make it on every rank.

        Args:
            device: of the trainer.
            request: this process's stop signals.
            origins: documents of a row of the mix, for errors.
            samples: where rank 0 notes the rows; None on other ranks.
            spikes: warns on rank 0.
            tokens: notes how even the ranks' work was.
        """
        self.device, self.request, self.origins = device, request, origins
        self.samples, self.spikes, self.tokens = samples, spikes, tokens
        self.stopped: signal.Signals | None = None
        """The signal that ended training before its last step."""
        self._seen, self._loss, self.grad_norm = Seen(), torch.zeros((), device=device), 0.0

    def add(self, seen: Seen, loss: torch.Tensor) -> None:
        """Note a micro-batch of this rank and its loss."""
        self._seen, self._loss = self._seen + seen, self._loss + loss

    def gather(self, step: int) -> StepRecord:
        """This step's record, which waits for the device. Every rank must call it."""
        seen = self._seen
        counts = torch.tensor([self.request.wanted or 0, len(seen.rows), seen.digest, seen.tokens]).to(self.device)
        reals = [
            torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in (self._loss, self.grad_norm)
        ]
        everyone = gather(torch.cat([counts, torch.stack(reals).view(torch.int64)])).cpu()
        columns = everyone[:, :4].T.tolist() + everyone[:, 4:].T.contiguous().view(torch.float64).tolist()
        return StepRecord(step, *columns)

    def stop_requested(self) -> bool:
        """Whether any rank was asked to stop before the first step, for instance while the model was loaded."""
        self.stopped = decisive(self.gather(0).signal)
        return self.stopped is not None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the step, before anything of it is saved."""
        record, rows = self.gather(state.global_step), self._seen.rows
        self._seen, self._loss, self.grad_norm = Seen(), torch.zeros((), device=self.device), 0.0
        check_finite(record, rows, args, self.origins)
        if self.tokens is not None:
            self.tokens.step(record.tokens)
        if self.samples is not None:
            self.samples.add(record.step, sum(record.rows), record.digest)
        if self.spikes is not None:
            self.spikes.check(record.step, statistics.fmean(record.loss))
        self.stopped = decisive(record.signal)
        if self.stopped:
            control.should_save = control.should_training_stop = True


def check_finite(record: StepRecord, rows: list[int], args: Any, origins: Callable[[int], list[str]]) -> None:
    """End the run at a loss or gradient that is NaN or Inf.

    Raises:
        UserError: on the rank that has it, naming its `rows` of the mix.
        PeerError: on the others.
    """
    bad = [rank for rank, loss in enumerate(record.loss) if not math.isfinite(loss)]
    what = f"loss is {record.loss[bad[0]]}" if bad else ""
    # With float16 the loss is scaled up until the gradient overflows now and then; such steps are skipped.
    if not bad and not args.fp16:
        bad = [rank for rank, norm in enumerate(record.grad_norm) if not math.isfinite(norm)]
        what = f"the gradient's norm is {record.grad_norm[bad[0]]}" if bad else ""
    if not bad:
        return
    if args.process_index != bad[0]:
        raise PeerError(f"{what} on rank {bad[0]}")
    documents = [origin for row in rows for origin in origins(row)]
    shown = ", ".join(documents[:_SHOWN]) + (f" and {len(documents) - _SHOWN} more" if len(documents) > _SHOWN else "")
    raise UserError(
        f"{what}, not a finite number, at step {record.step} on rank {bad[0]}; its rows of the mix: "
        f"{', '.join(map(str, rows))}, of {shown}. The last complete checkpoint is kept. Lower training.learning_rate or "
        "training.max_grad_norm, raise training.warmup_ratio, or check these rows"
    )


class SpikeRule:
    """Warns of a loss that is more than `sigmas` standard deviations above the mean of the last WINDOW steps.

    The rule by which OLMo-core skips steps (6 standard deviations, 128 steps); here it only warns, once half
    of the window is filled.
    """

    WINDOW = 128

    def __init__(self, name: str, sigmas: float | None, losses: list[float]) -> None:
        """`losses` are those of the last steps before a resume."""
        self.name, self.sigmas = name, sigmas
        self.losses: deque[float] = deque(losses, self.WINDOW)

    def check(self, step: int, loss: float) -> None:
        """Note the loss of a step, and warn."""
        if self.sigmas is not None and len(self.losses) >= self.WINDOW // 2:
            mean, deviation = statistics.fmean(self.losses), statistics.pstdev(self.losses)
            if loss > mean + self.sigmas * max(deviation, 1e-3 * abs(mean)):
                print(
                    f"{self.name}: warning: loss {loss:.4g} at step {step:,} is more than {self.sigmas:g} standard deviations "
                    f"({deviation:.2g}) above the mean {mean:.4g} of the last {len(self.losses)} steps",
                    flush=True,
                )
        self.losses.append(loss)
