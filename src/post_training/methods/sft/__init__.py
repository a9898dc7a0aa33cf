"""Supervised fine-tuning on packed, labelled rows."""

from dataclasses import dataclass
from typing import Any

from post_training.core.errors import one_of

ROWS = "messages"
CONFIG_CLASS, TRAINER_CLASS = "trl.trainer.sft_config:SFTConfig", "post_training.methods.sft.trainer:SFT"


@dataclass
class Config:
    """Supervised fine-tuning. Any shared section may be given here again for this stage alone."""

    init_from: str = "base"
    """What the stage starts from: `base` (`model`)."""
    max_seq_length: int = 2048
    """Tokens of a row."""
    overlong: str = "drop"
    """What becomes of conversations longer than that, all counted: `drop`, `truncate` (the end is lost), or `split` into rows
    of their own; what has nothing to train on is dropped."""
    train_on: str = "assistant"
    """Which tokens have a label: `assistant` (every answer), `last` (the last one only), `all`."""
    packing: bool = True
    """Put several conversations into a row, without attention across them."""


def packs(config: dict[str, Any]) -> bool:
    """Whether the mix packs several conversations into a row."""
    return bool(config["packing"])


def check(view: dict[str, Any]) -> None:
    """Raises ConfigError for a choice that does not exist."""
    one_of(view["sft"]["train_on"], ("assistant", "last", "all"), "sft.train_on")
    one_of(view["sft"]["overlong"], ("drop", "truncate", "split"), "sft.overlong")


def training_arguments(view: dict[str, Any]) -> dict[str, Any]:
    """Arguments of TRL's SFTConfig that this method adds to the shared ones.

    With `packing` and ready rows that carry `seq_lengths`, TRL's collator flattens a micro-batch to
    one row with restarting positions and no attention mask: the only combination in which attention
    never crosses documents. Without the skip flag TRL packs packed rows again and drops the lengths.
    """
    config = view["sft"]
    return {
        "packing": config["packing"],
        "packing_strategy": "bfd",
        "max_length": config["max_seq_length"],
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "assistant_only_loss": False,
    }
