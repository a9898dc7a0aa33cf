"""TRL's KTOTrainer on tokenised completions, with the KL term's pairs made in the micro-batch."""

from typing import Any

import numpy as np
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

from post_training.data.collate import OnRows
from post_training.data.view import Row, Rows
from post_training.methods.kto import balance, desirable_share


class KTO(OnRows, KTOTrainer):
    """TRL has no switch for tokenised rows."""

    def __init__(self, view: dict[str, Any], rows: Rows, **kwargs: Any) -> None:
        """As OnRows. Without `ref_model` TRL loads the folder that `model` came from a second time."""
        super().__init__(view, rows, **kwargs)
        self.data_collator = Collator(self.data_collator, with_kl=view["kto"]["loss_type"] == "kto")
        if self.args.process_index == 0 and (advice := balance(view["kto"], desirable_share(rows))):
            print(f"{view['stage']}: {advice}", flush=True)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """TRL calls it in its constructor and would look for text."""
        return dataset


class Collator(DataCollatorForUnpairedPreference):
    """Adds the mismatched completions of the KL term, each example's from the one before it in the micro-batch.

    TRL puts them into its text dataset in the same order, a micro-batch being so many rows of the file. Here
    they come from the micro-batch itself, and cannot disagree with it.
    """

    def __init__(self, theirs: DataCollatorForUnpairedPreference, with_kl: bool) -> None:
        """`theirs` is TRL's own, with its settings."""
        super().__init__(theirs.pad_token_id, theirs.max_length, theirs.pad_to_multiple_of)
        self.with_kl = with_kl

    def torch_call(self, examples: list[Row]) -> dict[str, Any]:
        """Collate rows of `prompt_ids`, `completion_ids` and `label`."""
        batch: list[dict[str, Any]] = [{name: np.asarray(row[name]).tolist() for name in row} for row in examples]
        for example, before in zip(batch, [batch[-1], *batch[:-1]], strict=True):
            example["label"] = bool(example["label"][0])
            if self.with_kl:
                example["KL_completion_ids"] = before["completion_ids"]
        return dict(super().torch_call(batch))
