"""TRL's DPOTrainer on tokenised pairs, with the reference's log-probabilities from a file or from a second model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from trl.trainer import dpo_trainer

from post_training.core.errors import UserError
from post_training.data.collate import OnRows
from post_training.methods.dpo.losses import needs_reference, start_loss
from post_training.methods.dpo.reference import RowsWithReference, StoredReference


class DPO(OnRows, dpo_trainer.DPOTrainer):
    """TRL has no switch for tokenised pairs, nor for log-probabilities that are there already."""

    args: Any
    model: Any

    def __init__(
        self, view: dict[str, Any], rows: Any, *, reference: StoredReference | None = None, **kwargs: Any
    ) -> None:
        """Make the trainer.

        Args:
            view: the stage's flat configuration.
            rows: of `prompt_ids`, `chosen_ids` and `rejected_ids`.
            reference: stored log-probabilities of these rows; None with `dpo.reference=online`, and in the stage that
                computes them.
            kwargs: `model`, `args`, `ref_model`, ... Without `ref_model`, online, TRL loads the model's folder again.

        Raises:
            UserError: when the reference belongs to other pairs.
        """
        with _without_hash_of_weights():
            super().__init__(view, rows, **kwargs)
        self.expected_loss, self.weights = start_loss(view), list(self.loss_weights)
        self.reference = "dpo.reference=online" if reference is None else str(reference.path)
        """Where the reference's log-probabilities come from, for the error."""
        if reference is not None:
            self.train_dataset = reference.join(rows)
            self.starts_at_reference = reference.of_start
        elif not needs_reference(view["dpo"]):
            self.train_dataset = RowsWithReference(rows, np.zeros((len(rows.distinct()), 2), np.float32))
            self.starts_at_reference = False
        else:
            self.starts_at_reference = kwargs.get("ref_model") is None

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """TRL calls it in its constructor with `precompute_ref_log_probs`, which also has it read the stored values."""
        return dataset

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> Any:
        """Transformers calls it once a step with its micro-batches: the tokens of chosen answers over all ranks, for `sft`."""
        if "sft" not in self.loss_types:
            return None
        count = sum(_chosen_tokens(batch) for batch in batch_samples)
        return self.accelerator.gather(count.to(device)).sum()  # type: ignore[union-attr]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, a mean over the micro-batch, with its weight in the step; at step 0 that of a policy that is the reference.

        Ranks and micro-batches are averaged afterwards, so with the share of the step's pairs that it holds (of the tokens of
        chosen answers, for `sft`), in terms of an even share, the step's loss is the mean over its pairs, however they are dealt.
        """
        args = self.args
        share = len(inputs["completion_mask"]) / 2 / args.per_device_train_batch_size
        shares = dict.fromkeys(self.loss_types, share)
        if num_items_in_batch is not None:
            even = num_items_in_batch / (args.world_size * args.gradient_accumulation_steps)
            shares["sft"] = _chosen_tokens(inputs) / even
        self.loss_weights = [shares[name] * weight for name, weight in zip(self.loss_types, self.weights, strict=True)]
        with self._metrics_of_the_step():
            loss = super().compute_loss(model, inputs, return_outputs)  # type: ignore[no-untyped-call]
        at_start = self.state.global_step == 0 and self.model.training
        if at_start and self.starts_at_reference and args.disable_dropout:
            self._check_start((loss[0] if isinstance(loss, tuple) else loss).item() / share)
        return loss

    @contextmanager
    def _metrics_of_the_step(self) -> Iterator[None]:
        """While the context is open, what TRL gathers of each pair is a sum over pairs in terms of an even share, as the loss is.

        Micro-batches of different size could not be gathered otherwise.
        """
        accelerator, even = self.accelerator, self.args.world_size * self.args.per_device_train_batch_size
        gather = accelerator.gather

        def gather_pairs(values: Any) -> Any:
            return gather(values) if values.dim() == 0 else gather(values.sum()).sum()[None] / even

        accelerator.gather = gather_pairs
        try:
            yield
        finally:
            del accelerator.gather

    def _check_start(self, loss: float) -> None:
        """Stop a run whose reference belongs to other weights, pairs or code. Raises UserError.

        In float32 the loss must be the expected one to 1e-4. Rounding in bfloat16, float16 and TF32 depends
        on how a batch is padded, so there the mean log-probabilities of the answers must agree to 1 %.
        """
        exact = not (self.args.bf16 or self.args.fp16 or self.args.tf32)
        logged = {name: values[-1] for name, values in self._metrics["train"].items()}
        wrong = False
        for side in ("chosen", "rejected"):
            difference = abs(logged[f"rewards/{side}"]) / self.beta
            allowed = (0.01 if exact else 0.5) + (1e-4 if exact else 1e-2) * abs(logged[f"logps/{side}"])
            wrong |= not difference <= allowed
        if exact and self.expected_loss is not None and not self.aux_loss_enabled:
            wrong |= not abs(loss - self.expected_loss) <= 1e-4 * max(1.0, self.expected_loss)
        if wrong:
            nats = {side: round(logged[f"rewards/{side}"] / self.beta, 4) for side in ("chosen", "rejected")}
            expected = "" if self.expected_loss is None else f", expected {self.expected_loss:.6f}"
            raise UserError(
                f"{self.reference}: the policy has taken no step, but its log-probabilities differ from the reference's by "
                f"{nats} nats a pair (loss {loss:.6f}{expected}): the reference was computed with other weights, pairs or "
                "code; delete that manifest to compute it again"
            )


def _chosen_tokens(batch: dict[str, Any]) -> Any:
    """How many tokens of chosen answers a batch of pairs predicts."""
    return batch["completion_mask"].chunk(2)[0][:, 1:].sum()


@contextmanager
def _without_hash_of_weights() -> Iterator[None]:
    """TRL names its own cache of reference values by a sha256 over all weights: half a minute for 7B, and unused here."""
    module: Any = dpo_trainer
    original = module.hash_module
    module.hash_module = lambda _: ""
    try:
        yield
    finally:
        module.hash_module = original
