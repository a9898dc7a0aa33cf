"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) on tokenised pairs."""

from dataclasses import dataclass
from typing import Any

from post_training.core.errors import at_least, one_of
from post_training.methods.dpo.losses import SORTED, check_losses, needs_reference, weights

ROWS = "preference"
CONFIG_CLASS, TRAINER_CLASS = "trl.trainer.dpo_config:DPOConfig", "post_training.methods.dpo.trainer:DPO"


@dataclass
class Config:
    """Direct preference optimisation. Any shared section may be given here again for this stage alone."""

    init_from: str = "auto"
    """`sft` = the SFT stage's exported model, `base` = `model`, `auto` = `sft` when the config has an `sft` section."""
    beta: float = 0.1
    """Weight of staying near the reference model."""
    loss_type: Any = "sigmoid"
    """A DPO loss of TRL, or a list of them."""
    loss_weights: list[float] | None = None
    """Weight of each loss of the list. Null = 1 each."""
    label_smoothing: float = 0.0
    """Share of labels taken to be wrong; for `robust`, `exo_pair` (above 0; 1e-3 is published), `aot`, `aot_unpaired`."""
    allow_implausible: bool = False
    """Train with a `beta` far from all that was published for `loss_type`. Never makes a stage stale."""
    reference: str = "stored"
    """`stored` = a stage of its own computes the reference model's log-probabilities, shared by every beta, loss and learning rate, and training holds one model. `online` = it holds both."""
    ref_model_name_or_path: str | None = None
    """Another reference model: an earlier stage, an id or a folder. Null = the model that this stage starts from."""
    reference_batch_size: int | None = None
    """Pairs that a device holds at a time in that stage. Null = `training.per_device_train_batch_size`. Never makes stale."""
    max_seq_length: int = 2048
    """Tokens of prompt plus answer; longer pairs are dropped and counted."""


SPEED_KEYS = ("allow_implausible", "reference_batch_size")
"""Keys of the section that never make a stage stale."""


def micro_batch_decides(view: dict[str, Any]) -> bool:
    """Whether the rows that a device holds at a time change what is computed, and not only its speed."""
    names, weighted = weights(view["dpo"]), view["training"]["trainer_args"].get("use_weighting")
    return any(name in SORTED for name in names) or bool(weighted and "sft" in names)


def stored_reference(view: dict[str, Any]) -> dict[str, Any] | None:
    """What decides the stored log-probabilities besides model, pairs and number format; None = there are none."""
    if view["dpo"]["reference"] == "online" or not needs_reference(view["dpo"]):
        return None
    return {"ld_alpha": view["training"]["trainer_args"].get("ld_alpha")}


def check(view: dict[str, Any]) -> None:
    """Raises ConfigError for what TRL would refuse, or silently ignore, hours later."""
    config = view["dpo"]
    one_of(config["reference"], ("stored", "online"), "dpo.reference")
    at_least(1, config["reference_batch_size"], "dpo.reference_batch_size")
    check_losses(view)


def training_arguments(view: dict[str, Any]) -> dict[str, Any]:
    """Arguments of TRL's DPOConfig that this method adds to the shared ones."""
    config = view["dpo"]
    return {
        "beta": config["beta"],
        "loss_type": list(weights(config)),
        "loss_weights": list(weights(config).values()),
        "label_smoothing": config["label_smoothing"],
        "max_length": config["max_seq_length"],
        # TRL reads the columns of the stored values only then; see trainer.py for what it would compute itself.
        "precompute_ref_log_probs": config["reference"] == "stored" or not needs_reference(config),
        "precompute_ref_batch_size": None,
    }
