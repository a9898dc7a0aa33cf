"""Evaluation during training: what it needs, checked before anything runs."""

from typing import Any

from post_training import methods
from post_training.core.errors import at_least, one_of, require
from post_training.plan.stage import Stage

KEYS = ("during_training_steps", "max_samples")
"""Of `evaluation`: what decides a training that early stopping ends, or whose best checkpoint is exported."""


def has_held_out(mixed: Stage) -> bool:
    """Whether a mix has held-out rows."""
    return bool(mixed.config["eval_fraction"]) or any(part.startswith("eval:") for part in mixed.inputs)


def check_held_out(name: str, view: dict[str, Any], mixed: Stage) -> None:
    """Raises ConfigError for an evaluation during training that cannot be, and for what needs one and has none."""
    every, stop = view["evaluation"]["during_training_steps"], view["training"]["early_stopping"]
    method, key = view["method"], "evaluation.during_training_steps"
    one_of(view["export"]["checkpoint"], ("last", "best"), "export.checkpoint")
    if stop is not None:
        for name, least in (("patience", 1), ("min_delta", 0)):
            at_least(least, stop[name], f"training.early_stopping.{name}")
        require(every is not None, "training.early_stopping", f"goes by the held-out loss; set {key}")
    problem = f"best goes by the held-out loss; set {key}"
    require(view["export"]["checkpoint"] == "last" or every is not None, "export.checkpoint", problem)
    if every is None:
        return
    require(every >= 1, key, f"found {every}, expected 1 or more, or null")
    shape = methods.load(method).ROWS
    can = shape == "messages" or (shape == "preference" and ("beta" in view[method] or not methods.answers(method)))
    require(can, key, f"{name} is trained with {method}, for which there is no held-out loss; set {name}.{key}=null")
    other = view[method].get("ref_model_name_or_path")
    require(
        other is None,
        key,
        f"held-out pairs are compared with the model that {name} starts from, but {name}.ref_model_name_or_path is {other}; set "
        f"{name}.{key}=null",
    )
    problem = f"{name} has no held-out rows; set {name}.data.eval_fraction, such as 0.02, or a dataset's eval_split"
    require(has_held_out(mixed), key, problem)
