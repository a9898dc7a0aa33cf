"""Looks at every step with the eyes of all ranks: stop on request, numbers that are none, spikes, and the rows seen."""

import math
import signal
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from post_training.core.errors import UserError
from post_training.run_dir.failures import PeerError
from post_training.run_dir.stop import StopRequest, decisive
from post_training.training.exchange import Exchange, Record
from post_training.training.step_samples import KEY, NumberedRows, Remembering, SamplesLog, Seen

_SHOWN = 16


class StepWatch(TrainerCallback):
    """Gathers each step's record, and acts on it, on all ranks alike.

    Must be added before the callbacks that save, so that nothing is saved of a step that went wrong.
    """

    def __init__(
        self,
        trainer: Any,
        request: StopRequest,
        samples: SamplesLog | None,
        spikes: "SpikeRule",
        save_also_every: int | None,
        origins: Callable[[int], list[str]],
    ) -> None:
        """Take hold of the trainer's steps.

        Args:
            trainer: its rows, collator and two methods are wrapped, on the instance.
            request: this process's stop signals.
            samples: where rank 0 notes the rows; None on other ranks.
            spikes: warns on rank 0.
            save_also_every: steps between saves that the trainer does not know of.
            origins: where a row of the mix comes from, for errors.
        """
        self.trainer, self.request, self.samples, self.spikes = trainer, request, samples, spikes
        self.save_also_every, self.origins = save_also_every, origins
        self.stopped: signal.Signals | None = None
        """The signal at which training has ended, if it did not come to its last step."""
        self.exchange = Exchange(trainer.args.device)
        self._seen, self._loss, self._grad_norm = Seen(), 0.0, 0.0
        self._rows: dict[int, list[int]] = {}
        trainer.train_dataset = NumberedRows(trainer.train_dataset)
        trainer.data_collator = Remembering(trainer.data_collator)
        take_step, get_grad_norm = trainer.training_step, trainer._get_grad_norm

        def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self._seen += inputs.pop(KEY)
            loss = take_step(model, inputs, *args, **kwargs)
            self._loss = self._loss + loss.detach()
            return loss

        def remember_grad_norm(*args: Any, **kwargs: Any) -> Any:
            norm = get_grad_norm(*args, **kwargs)
            self._grad_norm = 0.0 if norm is None else norm  # DeepSpeed has none before its first step
            return norm

        trainer.training_step, trainer._get_grad_norm = training_step, remember_grad_norm

    def asked_to_stop(self) -> bool:
        """Whether any rank was asked to before the first step, while the model was loaded for instance."""
        self.exchange.start(0, self.request.wanted or 0, 0, 0, 0.0, 0.0)
        (record,) = self.exchange.finish(everything=True)
        self.stopped = decisive(record.signal)
        return self.stopped is not None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the others about this step; the gather runs beside the optimizer."""
        step, seen = state.global_step + 1, self._seen
        self._rows[step] = seen.rows
        self.exchange.start(step, self.request.wanted or 0, len(seen.rows), seen.digest, self._loss, self._grad_norm)
        self._seen, self._loss, self._grad_norm = Seen(), 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Act on what is known by now; before a save, on everything."""
        step = state.global_step
        saves = control.should_save or step >= state.max_steps
        saves = saves or bool(self.save_also_every and step % self.save_also_every == 0)
        self._look(self.exchange.finish(everything=saves), args)
        if self.stopped:
            self._look(self.exchange.finish(everything=True), args)
            control.should_save = control.should_training_stop = True

    def _look(self, records: list[Record], args: Any) -> None:
        for record in records:
            rows = self._rows.pop(record.step)
            _check_numbers(record, rows, args, self.origins)
            if self.samples is not None:
                self.samples.add(record.step, sum(record.rows), record.digest)
                self.spikes.look(record.step, statistics.fmean(record.loss))
            self.stopped = self.stopped or decisive(record.signal)


def _check_numbers(record: Record, rows: list[int], args: Any, origins: Callable[[int], list[str]]) -> None:
    """End the run at a loss or gradient that is no number: on the rank that has it with the reason, on others without."""
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
        f"{', '.join(map(str, rows))}, of {shown}. The last whole checkpoint is kept. Lower training.learning_rate or "
        "training.max_grad_norm, raise training.warmup_ratio, or look at these rows"
    )


class SpikeRule:
    """Warns of a loss that is more than `sigmas` standard deviations above the mean of the last WINDOW steps.

    The rule by which OLMo-core skips steps (6 standard deviations, 128 steps); here it only warns, once half
    of the window has been seen.
    """

    WINDOW = 128

    def __init__(self, name: str, sigmas: float | None, losses: list[float]) -> None:
        """`losses` are those of the last steps before a resume."""
        self.name, self.sigmas = name, sigmas
        self.losses: deque[float] = deque(losses, self.WINDOW)

    def look(self, step: int, loss: float) -> None:
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
