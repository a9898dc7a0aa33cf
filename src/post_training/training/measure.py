"""What was trained on so far, counted where the batches are: tokens and time."""

import time
from typing import Any


class Meter:
    """Counts on the device, without waiting for it, and adds up over ranks when asked.

    `tokens` are all that are not padding; `trained_tokens` those with a label (SFT) or in an answer
    (DPO: of both answers).
    """

    def __init__(self, report_tokens: bool = True) -> None:
        self.report_tokens = report_tokens
        self.tokens = 0
        self.trained_tokens = 0
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._counts: Any = None
        self._last_log = (0, 0.0)
        self.tokens_per_second = 0.0

    def restore(self, facts: dict[str, Any]) -> None:
        """Go on from the counts of a checkpoint's marker."""
        self.tokens, self.trained_tokens = int(facts.get("tokens") or 0), int(facts.get("trained_tokens") or 0)
        self._seconds_before = float(facts.get("seconds") or 0.0)

    def attach(self, trainer: Any) -> None:
        """Look at each micro-batch and add the counts to each log; on the instance, so for every method alike."""
        train, log = trainer.training_step, trainer.log

        def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self._count(inputs)
            return train(model, inputs, *args, **kwargs)

        def log_with_counts(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                self._add_to(logs)
            log(logs, *args, **kwargs)

        trainer.training_step, trainer.log = training_step, log_with_counts
        self._started = time.monotonic()
        self._last_log = (self.tokens, self.seconds)

    @property
    def seconds(self) -> float:
        """Training time of all attempts that the current weights come from."""
        return self._seconds_before + time.monotonic() - self._started

    def totals(self) -> dict[str, Any]:
        """Counts over all ranks, for a checkpoint's marker. Every rank must call it."""
        self._reduce()
        return {"tokens": self.tokens, "trained_tokens": self.trained_tokens, "seconds": round(self.seconds, 3)}

    def _count(self, inputs: dict[str, Any]) -> None:
        import torch

        ids, labels = inputs["input_ids"], inputs.get("labels")
        mask = inputs.get("attention_mask")
        seen = torch.tensor(ids.numel()) if mask is None else mask.sum()
        trained = inputs["completion_mask"].sum() if labels is None else (labels != -100).sum()
        counts = torch.stack([seen.to(trained.device), trained]).to(torch.int64)
        self._counts = counts if self._counts is None else self._counts.to(counts.device) + counts

    def _reduce(self) -> None:
        import torch
        import torch.distributed as dist

        if dist.is_initialized():
            counts = torch.zeros(2, dtype=torch.int64) if self._counts is None else self._counts
            if dist.get_backend() == "nccl":
                counts = counts.cuda()  # it reduces nothing else
            dist.all_reduce(counts)
            self._counts = counts
        if self._counts is not None:
            tokens, trained = self._counts.tolist()
            self.tokens += tokens
            self.trained_tokens += trained
            self._counts = None

    def _add_to(self, logs: dict[str, float]) -> None:
        self._reduce()
        tokens, seconds = self._last_log
        now = self.seconds
        self.tokens_per_second = (self.tokens - tokens) / max(now - seconds, 1e-9)
        self._last_log = (self.tokens, now)
        if self.report_tokens:
            logs |= {"tokens": self.tokens, "trained_tokens": self.trained_tokens}
            logs["tokens_per_second"] = round(self.tokens_per_second, 1)


def unlogged(trainer: Any) -> dict[str, Any]:
    """What the trainer has summed up since its last log, for a checkpoint's marker. Every rank must call it.

    A log is a mean over the steps since the last one; without this the first after a resume would be over
    fewer steps than in a run that was never interrupted.
    """
    loss = trainer.accelerator.gather(trainer._tr_loss.detach().reshape(1))
    return {
        "since": trainer._globalstep_last_logged,
        "loss": loss.tolist(),
        "metrics": {name: list(values) for name, values in trainer._metrics["train"].items()},
    }


def restore_unlogged(trainer: Any, told: dict[str, Any] | None) -> None:
    """Go on with the sums of a marker; called when the trainer has set its own to zero."""
    if told is None:
        return
    losses, rank = told["loss"], trainer.args.process_index
    own = losses[rank] if len(losses) == trainer.args.world_size else sum(losses) / len(losses)
    trainer._tr_loss += own
    trainer._globalstep_last_logged = told["since"]
    trainer._metrics["train"].update(told["metrics"])
