"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306) on unpaired completions with binary labels."""

from dataclasses import dataclass
from typing import Any

from post_training.core.errors import one_of, require

ROWS = "unpaired"
CONFIG_CLASS, TRAINER_CLASS = "trl.trainer.kto_config:KTOConfig", "post_training.methods.kto.trainer:KTO"
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
    """Another reference model: an earlier stage, an id or a folder. Null = the model that this stage starts from."""
    max_seq_length: int = 2048
    """Tokens of prompt plus answer; longer rows are dropped and counted."""


def micro_batch_decides(view: dict[str, Any]) -> bool:
    """The KL term is estimated from the rows that a device holds at a time."""
    return bool(view["kto"]["loss_type"] == "kto")


def check(view: dict[str, Any]) -> None:
    """Raises ConfigError for what TRL would refuse in the training job."""
    config, per_device = view["kto"], view["training"]["per_device_train_batch_size"]
    one_of(config["loss_type"], LOSSES, "kto.loss_type")
    for key in ("beta", "desirable_weight", "undesirable_weight"):
        require(config[key] > 0, f"kto.{key}", f"found {config[key]}, expected a number above 0")
    require(
        config["loss_type"] != "kto" or per_device > 1,
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


def desirable_share(rows: Any, at_most: int = 2000) -> float:
    """Share of the documents, of `at_most` evenly spaced ones, whose answer is desirable."""
    documents = rows.distinct()
    step = -(-len(documents) // at_most)
    labels = [int(documents[index]["label"][0]) for index in range(0, len(documents), step)]
    return sum(labels) / len(labels)


def balance(config: dict[str, Any], share: float) -> str | None:
    """What to set when desirable and undesirable answers do not weigh as the paper recommends (its equation 8)."""
    if share in (0.0, 1.0):
        return f"all rows are {'' if share else 'un'}desirable; there is nothing to compare them with"
    ratio = config["desirable_weight"] * share / (config["undesirable_weight"] * (1 - share))
    if 0.95 <= ratio <= 1.4:  # the share is an estimate
        return None
    name, factor = ("undesirable_weight", ratio) if ratio > 1 else ("desirable_weight", 1 / ratio)
    return (
        f"{share:.0%} of the rows are desirable: together they weigh {ratio:.2g} times as much as the others, and 1 to 1.33 "
        f"is recommended; set kto.{name}={config[name] * factor:.2g}"
    )
