"""TRL's RewardTrainer on tokenised pairs, without padding, and with a step's loss that is the mean over its pairs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from trl.trainer.reward_trainer import RewardTrainer

from post_training.data.collate import Batch, OnRows, PairsCollator, PreferenceCollator
from post_training.models.padding_free import takes_documents


class Reward(OnRows, RewardTrainer):
    """TRL averages over a micro-batch, and pads it."""

    args: Any
    model: Any

    def __init__(self, view: dict[str, Any], rows: Any, *, padding_free: bool = False, **kwargs: Any) -> None:
        """As OnRows, for a sequence-classification model with one output."""
        super().__init__(view, rows, padding_free=padding_free and takes_documents(kwargs["model"]), **kwargs)
        pad = self.data_collator.pad_token_id
        multiple = self.data_collator.pad_to_multiple_of
        self.data_collator = DocumentEnds(pad) if self.without_padding else PreferenceCollator(pad, multiple)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, a mean over the micro-batch, with the share of the step's pairs that it holds, in terms of an even share.

        Ranks and micro-batches are averaged afterwards, so the step's loss is the mean over its pairs, however they are dealt.
        """
        inputs = {name: value for name, value in inputs.items() if name != "completion_mask"}
        layout = inputs.get("layout")
        sequences = len(inputs["input_ids"] if layout is None else layout["ends"])
        share = sequences / 2 / self.args.per_device_train_batch_size
        with self._metrics_of_the_step(share):
            found = super().compute_loss(model, inputs, return_outputs)  # type: ignore[no-untyped-call]
        return (found[0] * share, found[1]) if return_outputs else found * share

    @contextmanager
    def _metrics_of_the_step(self, share: float) -> Iterator[None]:
        """While the context is open, what TRL gathers has the weight of its pairs; rewards are gathered whatever their number."""
        accelerator, gather, world = self.accelerator, self.accelerator.gather, self.args.world_size
        even, gathered = 2 * world * self.args.per_device_train_batch_size, []

        def gather_rewards(rewards: torch.Tensor) -> torch.Tensor:
            sizes = gather(torch.tensor([len(rewards)], device=rewards.device)).tolist()
            padded = rewards.new_zeros(max(sizes), 1)
            padded[: len(rewards)] = rewards
            parts = gather(padded).chunk(world)
            gathered.append(sum(sizes))
            return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

        def gather_means(value: torch.Tensor) -> torch.Tensor:
            return gather(value * share if value.is_floating_point() else value)

        accelerator.gather, accelerator.gather_for_metrics = gather_rewards, gather_means
        try:
            yield
        finally:
            del accelerator.gather, accelerator.gather_for_metrics
        self._metrics["train"]["mean_reward"][-1] *= gathered[0] / even


class DocumentEnds(PairsCollator):
    """As PairsCollator; `layout` has `ends`, int64 `[2 * pairs]`, where the reward of each document is read.

    As Transformers does: at the last token that is no padding token, though a document may end with such tokens.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def step(self, parts: list[list[Any]]) -> list[Batch]:
        """Collate several micro-batches of rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""
        batches = super().step(parts)
        for batch in batches:
            inputs = batch["layout"]["inputs"]
            ids, starts = inputs["input_ids"][0].numpy(), inputs["cu_seq_lens_q"][:-1].numpy().astype(np.int64)
            places = np.where(ids != self.pad_token_id, np.arange(len(ids)), -1)
            ends = np.maximum(np.maximum.reduceat(places, starts), starts)
            batch["layout"] = {"inputs": inputs, "ends": torch.from_numpy(ends)}
        return batches
