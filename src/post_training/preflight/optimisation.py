"""Batch, length, warm-up, learning rate, schedule and the loss's own settings: are they plausible?"""

import math
import warnings
from typing import Any

from post_training.core.errors import ConfigError
from post_training.methods.dpo.losses import implausible_betas
from post_training.preflight.check import Check, check, failed
from post_training.preflight.subject import Subject

# Learning rates of published recipes for full fine-tuning of models of a billion parameters and more, with room around them:
# SFT 2e-6 (Tulu 3 70B) to 3e-4 (SmolLM2 1.7B), DPO 7e-8 (OLMo 3 Think) to 1e-6 (SmolLM2), KTO 5e-7 to 5e-6, reward models
# 3e-6 (Tulu 3 8B) to 9e-6 (InstructGPT).
_RATES = {"sft": (5e-7, 5e-4), "dpo": (2e-8, 1e-5), "kto": (5e-8, 2e-5), "reward": (5e-7, 5e-5)}
_LORA = 10.0
"""Adapters take rates ten times as high."""
_FAR = 30.0
"""So far outside of these a run can only diverge or learn nothing."""
_MOST_EPOCHS = 10
_USUAL_EPOCHS = 3
_POINTS = 500
# Below it nothing is lost by beginning at once: RLHF Workflow (arXiv:2405.07863) trains DPO at 5e-7 without warm-up.
_RATE_TO_WARM_UP_TO = 1e-6


def checks(subject: Subject) -> list[Check]:
    """Every check of one stage."""
    found = [_batch(subject), _length(subject), _warmup(subject), _learning_rate(subject)]
    if subject.method in ("dpo", "kto"):
        found.append(_beta(subject))
    return [*found, _schedule(subject)]


def _batch(subject: Subject) -> Check:
    try:
        value = subject.plan.describe(subject.steps)
    except ConfigError as error:
        return failed("optimisation.batch", error)
    return Check("optimisation.batch", value)


def _length(subject: Subject) -> Check:
    """How often each row is seen."""
    rows, batch, steps = subject.mix["rows_out"], subject.training["effective_batch_size"], subject.steps
    epochs = steps * batch / rows
    few = rows < batch
    return check(
        "optimisation.epochs",
        f"{rows / batch:,.1f} steps per epoch, {epochs:,.2f} epochs",
        warns=few or epochs > _MOST_EPOCHS,
        remedy=f"a step of {batch} rows takes all {rows} rows more than once: lower training.effective_batch_size"
        if few
        else f"so many will probably overfit; {_USUAL_EPOCHS} epochs are {math.ceil(_USUAL_EPOCHS * rows / batch):,} steps",
    )


def warmup_steps(subject: Subject) -> int:
    """As Transformers counts them."""
    return math.ceil(subject.steps * subject.training["warmup_ratio"])


def _warmup(subject: Subject) -> Check:
    steps, ratio = warmup_steps(subject), subject.training["warmup_ratio"]
    sudden = steps == 0 and subject.training["learning_rate"] > _RATE_TO_WARM_UP_TO
    return check(
        "optimisation.warmup",
        f"{steps:,} of {subject.steps:,} steps",
        warns=sudden or ratio > 0.5,
        remedy="Adam's first steps are its largest: set training.warmup_ratio to 0.03 or more"
        if sudden
        else "more than half of the run is warm-up: lower training.warmup_ratio",
    )


def plausible_rates(subject: Subject) -> tuple[float, float]:
    """Lowest and highest learning rate that a recipe for this method and size of model has; small models take higher ones."""
    low, high = _RATES.get(subject.method, _RATES["sft"])
    higher = min(100.0, max(1.0, (1e9 / subject.shape.parameters) ** 0.8))
    if subject.view["model"]["lora"] is not None:
        higher *= _LORA
    return low, high * higher


def _learning_rate(subject: Subject) -> Check:
    rate, (low, high) = subject.training["learning_rate"], plausible_rates(subject)
    return check(
        "optimisation.learning_rate",
        f"{rate:g} for {subject.method} of {subject.shape.parameters:,} parameters",
        fails=not low / _FAR <= rate <= high * _FAR,
        warns=not low <= rate <= high,
        remedy=f"recipes have {low:.0e} to {high:.0e} here: set training.learning_rate",
    )


def _beta(subject: Subject) -> Check:
    own = subject.own
    problems = implausible_betas(own) if subject.method == "dpo" else []
    if subject.method == "kto" and not 0.005 <= own["beta"] <= 1:
        problems = ["published is 0.01 to 0.5"]
    return check(
        "optimisation.beta", f"{own['beta']:g} with loss {own['loss_type']}", warns=problems, remedy="; ".join(problems)
    )


def _schedule(subject: Subject) -> Check:
    """The learning rate at the last step, and whether it was at its end long before that."""
    kind, name = subject.training["lr_scheduler_type"], "optimisation.schedule"
    try:
        rates = schedule(subject)
    except (ValueError, TypeError, KeyError, ImportError) as error:
        problem = " ".join(str(error).split())
        return Check(name, f"{kind}: {problem}", "failure", "set training.lr_scheduler_type and lr_scheduler_kwargs")
    if rates is None:
        return Check(name, f"{kind}, which depends on the loss")
    last, peak = rates[-1], max(rates)
    idle = next((i for i, rate in enumerate(reversed(rates)) if rate > last + 1e-9), len(rates)) / len(rates)
    return check(
        name,
        f"{kind}: ends at {last:.0%} of the peak in step {subject.steps:,}",
        warns=(last < 0.2 and idle > 0.1) or (peak > 0 and last > 0.5 and "constant" not in kind),
        remedy=f"the rate is at its end for the last {idle:.0%} of the steps: set lr_scheduler_kwargs so that it ends with the run"
        if last < 0.2
        else "the rate is still high at the end: the schedule is made for a longer run, see lr_scheduler_kwargs",
    )


def schedule(subject: Subject) -> list[float] | None:
    """Share of the peak at evenly spaced steps, the last one among them; None for a schedule that reacts to the loss.

    Raises what Transformers raises for arguments that the scheduler does not have.
    """
    import torch
    from transformers import get_scheduler

    from post_training.training.arguments import scheduler_kwargs

    kind: Any = subject.training["lr_scheduler_type"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    kwargs = scheduler_kwargs(subject.training)
    with warnings.catch_warnings():
        # Torch's, that the scheduler steps before the optimizer: nothing is trained here.
        warnings.simplefilter("ignore")
        made: Any = get_scheduler(
            kind, optimizer, warmup_steps(subject), subject.steps, scheduler_specific_kwargs=kwargs
        )
    rate = (getattr(made, "lr_lambdas", None) or [None])[0]
    if rate is None:
        return None
    last = max(subject.steps - 1, 0)
    return [float(rate(round(last * point / _POINTS))) for point in range(_POINTS + 1)]
