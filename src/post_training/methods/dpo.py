"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) on tokenised pairs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from post_training.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

ROWS = "preference"
# TRL 1.16 accepts any name and fails at the first step; tests/unit/test_methods.py holds this list against TRL.
LOSSES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down "
    "discopop sft sigmoid_norm"
).split()


@dataclass
class Config:
    """Direct preference optimisation. Any shared section may be given here again for this stage alone."""

    init_from: str = "auto"
    """`sft` = the SFT stage's exported model, `base` = `model`, `auto` = `sft` when the config has an `sft` section."""
    beta: float = 0.1
    """Weight of staying near the reference model."""
    loss_type: Any = "sigmoid"
    """A DPO loss of TRL, or a list of them (with `training.trainer_args.loss_weights`)."""
    ref_model_name_or_path: str | None = None
    """Another reference model, id or folder. Null = the model that this stage starts from."""
    max_seq_length: int = 2048
    """Tokens of prompt plus answer; longer pairs are dropped and counted."""


def packs(config: dict[str, Any]) -> bool:
    """Pairs are never packed: TRL's DPO has no packing."""
    return False


def check(view: dict[str, Any]) -> None:
    """Refuse what TRL would refuse, or silently ignore, hours later."""
    config = view["dpo"]
    losses = config["loss_type"] if isinstance(config["loss_type"], list) else [config["loss_type"]]
    for loss in losses:
        if loss not in LOSSES:
            raise ConfigError("dpo.loss_type", f"no loss named {loss!r}. {did_you_mean(str(loss), LOSSES)}")
    if not config["beta"] > 0:
        raise ConfigError("dpo.beta", f"found {config['beta']}, expected a number above 0")


def training_arguments(view: dict[str, Any]) -> dict[str, Any]:
    """Arguments of TRL's DPOConfig that this method adds to the shared ones."""
    config = view["dpo"]
    losses = config["loss_type"] if isinstance(config["loss_type"], list) else [config["loss_type"]]
    return {"beta": config["beta"], "loss_type": losses, "max_length": config["max_seq_length"]}


def config_class() -> "type[DPOConfig]":
    """TRL's class for the arguments."""
    from trl.trainer.dpo_config import DPOConfig

    return DPOConfig


def build_trainer(view: dict[str, Any], model: Any, args: Any, **kwargs: Any) -> "DPOTrainer":
    """TRL's DPOTrainer on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Without `ref_model` TRL loads the folder that `model` came from a second time.
    """
    from trl.trainer.dpo_trainer import DPOTrainer

    class TokenizedDPOTrainer(DPOTrainer):
        """TRL has no switch for tokenised pairs: its preparation would look for text columns."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    return TokenizedDPOTrainer(model=model, args=args, **kwargs)
