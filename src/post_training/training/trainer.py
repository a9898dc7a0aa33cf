"""One trainer class a method: TRL's, with the measurements and checks of every step mixed in."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback

from post_training import methods
from post_training.data.deal import BY_LENGTH, BY_TOKENS, IN_ORDER, Dealing
from post_training.training.loss_check import LossCheck
from post_training.training.measure import TokenCounter
from post_training.training.ranks import settle_buckets
from post_training.training.saving import Checkpoints
from post_training.training.step_monitor import StepMonitor
from post_training.training.step_samples import KEY, MicroBatches

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


def trainer_class(method: str) -> Any:
    """`class SFT(Monitored, <the method's TRL trainer>)`, and the same of any other method."""
    base = methods.trainer_class(method)
    return type(base.__name__, (Monitored, base), {})


class Monitored(Trainer):
    """Mixin over a TRL trainer: counts tokens, passes each step to the step monitor, and saves complete checkpoints.

    It overrides five methods of Transformers' Trainer. TRL's trainers override three of them and call `super()`;
    tests/unit/test_trainer.py fails when either library changes how it calls them.
    """

    checkpoints: Checkpoints | None = None
    """Set before `train()` where checkpoints are saved."""

    def __init__(
        self, view: dict[str, Any], rows: Any, *, tokens: TokenCounter, monitor: StepMonitor, **kwargs: Any
    ) -> None:
        """The method's own arguments (`methods/__init__.py`), the token counter, whose clock starts here, and the monitor."""
        super().__init__(view, rows, **kwargs)  # type: ignore[arg-type]
        self.tokens, self.monitor = tokens, monitor
        args, kind = self.args, BY_TOKENS if self.without_padding else BY_LENGTH  # type: ignore[attr-defined]
        if methods.micro_batch_decides(view):
            kind = IN_ORDER
        dealing = Dealing(args.world_size, args.gradient_accumulation_steps, args.per_device_train_batch_size, kind)
        self.train_dataset: Any = MicroBatches(self.train_dataset, dealing, args.process_index, self.data_collator)
        self.remove_callback(PrinterCallback)
        self.add_callback(monitor)
        self.loss_check = LossCheck(self, rows, view)
        self.add_callback(self.loss_check)
        tokens.start()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The micro-batches of this rank, ready to be read: Accelerate would cut the rows into its own."""
        args = self.args
        return DataLoader(
            self.train_dataset,
            batch_size=1,
            collate_fn=_only,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """A micro-batch: TRL returns its share of what is logged as the loss, scaled for gradient accumulation."""
        seen = inputs.pop(KEY)
        self.tokens.count(seen)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.monitor.add(seen, loss.detach())
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Transformers calls it once a step, after the clipping, and logs what it returns (DeepSpeed: None at first)."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        self.monitor.grad_norm = 0.0 if norm is None else norm
        return norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Transformers calls it on all ranks with `loss` in the logs of steps, and without at the end."""
        if "loss" in logs:
            self.tokens.add_to(logs)
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Transformers calls it on all ranks after the log of the step, and before the callbacks' `on_save`."""
        assert self.checkpoints is not None
        self.checkpoints.save(self.state.global_step, partial(super()._save_checkpoint, model, trial), self.unlogged())

    def unlogged(self) -> dict[str, Any]:
        """What Transformers and TRL have summed up since the last log, for a checkpoint's marker. Every rank must call it.

        A log is a mean over the steps since the last one; without this the first after a resume would be over
        fewer steps than in a run that was never interrupted.
        """
        loss = self.accelerator.gather(self._tr_loss.detach().reshape(1))
        metrics = {name: list(values) for name, values in self._metrics["train"].items()}  # type: ignore[attr-defined]
        return {"since": self._globalstep_last_logged, "loss": loss.tolist(), "metrics": metrics}

    def restore_unlogged(self, sums: dict[str, Any]) -> None:
        """Continue with the sums of a marker; the trainer has set its own to zero."""
        losses, rank = sums["loss"], self.args.process_index
        self._tr_loss += losses[rank] if len(losses) == self.args.world_size else sum(losses) / len(losses)
        self._globalstep_last_logged = sums["since"]
        self._metrics["train"].update(sums["metrics"])  # type: ignore[attr-defined]


def _only(batches: list[Any]) -> Any:
    """The one batch that is read at a time."""
    (batch,) = batches
    return batch


class RestoreCallback(TrainerCallback):
    """What Transformers and DDP lose or keep wrongly over a resume, set right before the first step."""

    def __init__(self, trainer: Monitored, unlogged: dict[str, Any] | None) -> None:
        """`unlogged`: of the marker that the run resumes from."""
        self.trainer, self.unlogged = trainer, unlogged

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed state carries the intervals of the attempt that saved it; the current configuration counts."""
        state.logging_steps, state.save_steps = args.logging_steps, args.save_steps
        settle_buckets(self.trainer.model_wrapped)
        if self.unlogged is not None:
            self.trainer.restore_unlogged(self.unlogged)
