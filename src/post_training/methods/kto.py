"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306) on answers that are judged one by one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from post_training.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    from post_training.data.view import Rows

ROWS = "unpaired"
LOSSES = ("kto", "apo_zero_unpaired")


@dataclass
class Config:
    """Kahneman-Tversky optimisation. Any shared section may be given here again for this stage alone."""

    init_from: str = "auto"
    """`base` = `model`, or the stage whose exported model it starts from; `auto` = `sft` when the config has an `sft`
    section."""
    beta: float = 0.1
    """Weight of staying near the reference model."""
    loss_type: str = "kto"
    """`kto`, or `apo_zero_unpaired`, which estimates no KL term."""
    desirable_weight: float = 1.0
    """Weight of the loss of desirable answers. With more undesirable ones, raise it: the paper wants
    desirable_weight x desirable rows from 1 to 4/3 times undesirable_weight x undesirable rows."""
    undesirable_weight: float = 1.0
    """Weight of the loss of undesirable answers."""
    ref_model_name_or_path: str | None = None
    """Another reference model, id or folder. Null = the model that this stage starts from."""
    max_seq_length: int = 2048
    """Tokens of prompt plus answer; longer rows are dropped and counted."""


def packs(config: dict[str, Any]) -> bool:
    """Rows are never packed: TRL's KTO has no packing."""
    return False


def micro_batch_decides(view: dict[str, Any]) -> bool:
    """The KL term is estimated from the rows that a device holds at a time."""
    return bool(view["kto"]["loss_type"] == "kto")


def check(view: dict[str, Any]) -> None:
    """Refuse what TRL would refuse in the training job."""
    config, per_device = view["kto"], view["training"]["per_device_train_batch_size"]
    if config["loss_type"] not in LOSSES:
        raise ConfigError(
            "kto.loss_type", f"no loss named {config['loss_type']!r}. {did_you_mean(config['loss_type'], LOSSES)}"
        )
    for key in ("beta", "desirable_weight", "undesirable_weight"):
        if not config[key] > 0:
            raise ConfigError(f"kto.{key}", f"found {config[key]}, expected a number above 0")
    if config["loss_type"] == "kto" and per_device < 2:
        raise ConfigError(
            "kto.training.per_device_train_batch_size",
            f"found {per_device}, expected 2 or more: the KL term is estimated from a prompt with another row's answer "
            "in the same micro-batch; kto.loss_type=apo_zero_unpaired works without",
        )


def training_arguments(view: dict[str, Any]) -> dict[str, Any]:
    """Arguments of TRL's KTOConfig that this method adds to the shared ones."""
    names = ("beta", "loss_type", "desirable_weight", "undesirable_weight")
    own = {name: view["kto"][name] for name in names}
    # Stored reference log-probabilities would not fit: those of the KL term belong to a micro-batch, not to a row.
    return own | {"max_length": view["kto"]["max_seq_length"], "precompute_ref_log_probs": False}


def config_class() -> "type[KTOConfig]":
    """TRL's class for the arguments."""
    from trl.trainer.kto_config import KTOConfig

    return KTOConfig


def build_trainer(view: dict[str, Any], model: Any, args: Any, train_dataset: "Rows", **kwargs: Any) -> "KTOTrainer":
    """TRL's KTOTrainer on rows of `prompt_ids`, `completion_ids` and `label` (`[1]` or `[0]`).

    Without `ref_model` TRL loads the folder that `model` came from a second time.
    """
    import numpy as np
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

    from post_training.data.collate import trainer_on

    class Collator(DataCollatorForUnpairedPreference):
        """Adds the mismatched answers of the KL term, each row's from the row before it in the micro-batch.

        TRL puts them into its text dataset in the same order, a micro-batch being so many rows of the file. Here
        they come from the micro-batch itself, and cannot disagree with it.
        """

        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            rows = [{name: np.asarray(values).tolist() for name, values in row.items()} for row in examples]
            for row, before in zip(rows, [rows[-1], *rows[:-1]], strict=True):
                row["label"] = bool(row["label"][0])
                if args.loss_type == "kto":
                    row["KL_completion_ids"] = before["completion_ids"]
            return dict(super().torch_call(rows))

    class TokenizedKTOTrainer(KTOTrainer):
        """TRL has no switch for tokenised rows: its preparation would look for text columns."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    trainer = trainer_on(TokenizedKTOTrainer, train_dataset, model=model, args=args, **kwargs)
    theirs = trainer.data_collator
    trainer.data_collator = Collator(theirs.pad_token_id, theirs.max_length, theirs.pad_to_multiple_of)
    if args.process_index == 0 and (advice := balance(view["kto"], desirable_share(train_dataset))):
        print(f"{view['stage']}: {advice}", flush=True)
    return trainer


def desirable_share(rows: "Rows", at_most: int = 2000) -> float:
    """Share of the documents, of `at_most` evenly spaced ones, whose answer is desirable."""
    documents = rows.distinct()
    step = -(-len(documents) // at_most)
    labels = [int(documents[index]["label"][0]) for index in range(0, len(documents), step)]
    return sum(labels) / len(labels)


def balance(config: dict[str, Any], share: float) -> str | None:
    """What to set when desirable and undesirable answers do not weigh as the paper recommends (its equation 8)."""
    if share in (0.0, 1.0):
        return f"all rows are {'' if share else 'un'}desirable; there is nothing to tell them from"
    ratio = config["desirable_weight"] * share / (config["undesirable_weight"] * (1 - share))
    if 0.95 <= ratio <= 1.4:  # the share is an estimate
        return None
    name, factor = ("undesirable_weight", ratio) if ratio > 1 else ("desirable_weight", 1 / ratio)
    return (
        f"{share:.0%} of the rows are desirable: together they weigh {ratio:.2g} times as much as the others, and 1 to 1.33 "
        f"is recommended; set kto.{name}={config[name] * factor:.2g}"
    )
