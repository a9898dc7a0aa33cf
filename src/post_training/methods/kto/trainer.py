"""TRL's KTOTrainer on tokenised completions, with the KL term's pairs made in the micro-batch."""

from typing import Any

import numpy as np
import torch
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

from post_training.data.collate import OnRows, answers
from post_training.data.view import Row, Rows
from post_training.methods.kto import balance, desirable_share


class KTO(OnRows, KTOTrainer):
    """TRL has no switch for tokenised rows."""

    def __init__(self, view: dict[str, Any], rows: Rows, **kwargs: Any) -> None:
        """As OnRows. Without `ref_model` TRL loads the folder that `model` came from a second time."""
        super().__init__(view, rows, **kwargs)
        with_kl = view["kto"]["loss_type"] == "kto"
        self.data_collator = Collator(self.data_collator, with_kl, self.without_padding)
        self.weights = self.desirable_weight, self.undesirable_weight
        if self.args.process_index == 0 and (advice := balance(view["kto"], desirable_share(rows))):
            print(f"{view['stage']}: {advice}", flush=True)

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Any:
        """TRL hands all that it does not know on to the model, here with the layout of these sequences."""
        return super()._compute_kl_logps(model, {**batch, "layout": batch.get("KL_layout")})  # type: ignore[no-untyped-call]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, a mean over the micro-batch, with the weight of its rows among those of the step."""
        share = len(inputs["label"]) / self.args.per_device_train_batch_size
        self.desirable_weight, self.undesirable_weight = (weight * share for weight in self.weights)
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]


class Collator(DataCollatorForUnpairedPreference):
    """Adds the mismatched completions of the KL term, each example's from the one before it in the micro-batch.

    TRL puts them into its text dataset in the same order, a micro-batch being so many rows of the file. Here
    they come from the micro-batch itself, and cannot disagree with it.
    """

    def __init__(self, theirs: DataCollatorForUnpairedPreference, with_kl: bool, padding_free: bool) -> None:
        """`theirs` is TRL's own, with its settings."""
        super().__init__(theirs.pad_token_id, theirs.max_length, theirs.pad_to_multiple_of)
        self.with_kl, self.padding_free = with_kl, padding_free

    def torch_call(self, examples: list[Row]) -> dict[str, Any]:
        """Collate rows of `prompt_ids`, `completion_ids` and `label`."""
        if self.padding_free:
            return self.step([examples])[0]
        batch: list[dict[str, Any]] = [{name: np.asarray(row[name]).tolist() for name in row} for row in examples]
        for example, before in _with_before(batch):
            example["label"] = bool(example["label"][0])
            if self.with_kl:
                example["KL_completion_ids"] = before["completion_ids"]
        return dict(super().torch_call(batch))

    def step(self, parts: list[list[Row]]) -> list[dict[str, Any]]:
        """Collate several micro-batches of such rows."""
        if not self.padding_free:
            return [self.torch_call(rows) for rows in parts]
        batches = answers([[(row["prompt_ids"], row["completion_ids"]) for row in rows] for rows in parts])
        if self.with_kl:
            pairs = [_with_before(rows) for rows in parts]
            others = [[(row["prompt_ids"], before["completion_ids"]) for row, before in part] for part in pairs]
            batches = [batch | kl for batch, kl in zip(batches, answers(others, "KL_"), strict=True)]
        labels = [torch.tensor([bool(row["label"][0]) for row in rows]) for rows in parts]
        return [batch | {"label": found} for batch, found in zip(batches, labels, strict=True)]


def _with_before(rows: list[Any]) -> list[tuple[Any, Any]]:
    """Each row with the one before it; the first with the last."""
    return list(zip(rows, [rows[-1], *rows[:-1]], strict=True))
