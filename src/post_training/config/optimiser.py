"""Ranges of the optimiser's keys."""

from typing import Any

from post_training.core.errors import one_of, require

SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
)  # fmt: skip
"""Of transformers.SchedulerType, which planning does not import."""


def check_scheduler(name: str) -> None:
    """Raise ConfigError for a schedule that Transformers does not have."""
    one_of(name, SCHEDULERS, "training.lr_scheduler_type")


def check_optimiser(training: dict[str, Any]) -> None:
    """Raise ConfigError for a value that no optimiser or schedule can have."""
    check_scheduler(training["lr_scheduler_type"])
    rate = training["learning_rate"]
    require(rate > 0, "training.learning_rate", f"found {rate}, expected a number above 0, such as 2.0e-5")
    for key in ("weight_decay", "max_grad_norm"):
        require(training[key] >= 0, f"training.{key}", f"found {training[key]}, expected 0 or more")
    ratio = training["warmup_ratio"]
    require(0 <= ratio < 1, "training.warmup_ratio", f"found {ratio}, expected a share from 0 to below 1")
