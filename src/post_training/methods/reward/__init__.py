"""Reward models (Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155): a model with one output, trained on tokenised pairs."""

from dataclasses import dataclass
from typing import Any

from post_training.core.errors import require

ROWS = "preference"
CONFIG_CLASS, TRAINER_CLASS = "trl.trainer.reward_config:RewardConfig", "post_training.methods.reward.trainer:Reward"
MODEL_CLASS = "AutoModelForSequenceClassification"


@dataclass
class Config:
    """Reward models. Any shared section may be given here again for this stage alone."""

    init_from: str = "auto"
    """`base` = `model`, or the stage whose exported model it starts from; `auto` = `sft` when the config has an `sft`
    section. Its output layer is new, from `training.seed`, unless it starts from a reward model."""
    center_rewards_coefficient: float | None = None
    """Weight of a loss that keeps the rewards of a pair around 0 (arXiv:2312.09244, which has 0.01). Null = without."""
    max_seq_length: int = 2048
    """Tokens of prompt plus answer; longer pairs are dropped and counted."""


def check(view: dict[str, Any]) -> None:
    """Raises ConfigError for a weight that cannot be one, and for an adapter on the output layer, which is trained whole."""
    weight = view["reward"]["center_rewards_coefficient"]
    key = "reward.center_rewards_coefficient"
    require(weight is None or 0 < weight < float("inf"), key, f"found {weight}, expected a number above 0, or null")
    targets = (view["model"]["lora"] or {}).get("target_modules") or []
    problem = "score is the new output layer, which is trained as a whole beside adapters; take it out"
    require("score" not in targets, "model.lora.target_modules", problem)


def training_arguments(view: dict[str, Any]) -> dict[str, Any]:
    """Arguments of TRL's RewardConfig that this method adds to the shared ones."""
    config = view["reward"]
    names = {"center_rewards_coefficient": config["center_rewards_coefficient"]}
    return names | {"max_length": config["max_seq_length"]}
