"""TRL's DPO losses: their names, which arguments they use, plausible betas, and their value at the start.

TRL 1.16 accepts any name and fails at the first step, and ignores arguments that a loss has no use for.
tests/unit/test_dpo_losses.py holds every list here against the installed TRL.
"""

import math
from collections.abc import Iterator
from typing import Any

from post_training.core.errors import did_you_mean, require

LOSSES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down "
    "discopop sft sigmoid_norm"
).split()
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""Losses that use `label_smoothing`."""
SORTED = ("aot", "aot_unpaired")
"""Losses that sort the pairs of a micro-batch, so that its size decides what they compute."""
DIVERGENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""Losses with a form for other f-divergences than the reverse KL."""
# Lowest and highest beta that is accepted, and what was published: Zephyr 0.01, SmolLM3 (apo_zero) 0.05, SmolLM2 0.5;
# Tulu 3, OLMo 2 and 3 (sigmoid_norm) 5; SPPO 0.001. Where beta multiplies a sum over an answer's tokens it is two
# orders of magnitude below one that multiplies a mean over them.
_SUMMED = (1e-3, 1.0, "0.01 to 0.5")
_PLAUSIBLE = dict.fromkeys(LOSSES, _SUMMED) | {
    "sft": (0.0, math.inf, ""),  # has no beta
    "sppo_hard": (1e-4, 1.0, "0.001"),
    "sigmoid_norm": (0.5, 50.0, "5"),
}


def weights(config: dict[str, Any]) -> dict[str, float]:
    """Loss -> its weight, in the order of `dpo.loss_type`."""
    names = config["loss_type"] if isinstance(config["loss_type"], list) else [config["loss_type"]]
    return dict(zip(names, config["loss_weights"] or [1.0] * len(names), strict=True))


def needs_reference(config: dict[str, Any]) -> bool:
    """Whether any loss compares with a reference model; `sft` alone does not."""
    return any(name != "sft" and weight > 0 for name, weight in weights(config).items())


def start_loss(view: dict[str, Any]) -> float | None:
    """The loss while the policy still is the reference (`sigmoid`: ln 2); None where it depends on the data."""
    config, ln2 = view["dpo"], math.log(2)
    beta, smoothing = config["beta"], config["label_smoothing"]
    known = {
        **dict.fromkeys(("sigmoid", "robust", "aot", "aot_unpaired", "sigmoid_norm"), ln2),
        **dict.fromkeys(("nca_pair", "bco_pair"), 2 * ln2),
        **dict.fromkeys(("hinge", "apo_zero", "apo_down"), 1.0),
        "ipo": 1 / (4 * beta**2),
        "sppo_hard": 1 / (2 * beta**2),
        "discopop": (ln2 + 1) / 2,
    }
    if smoothing > 0:
        known["exo_pair"] = -ln2 - (math.log1p(-smoothing) + math.log(smoothing)) / 2
    used = {name: weight for name, weight in weights(config).items() if weight > 0}
    if view["training"]["trainer_args"].get("use_weighting") or not used.keys() <= known.keys():
        return None
    return sum(known[name] * weight for name, weight in used.items())


def check_losses(view: dict[str, Any]) -> None:
    """Raises ConfigError for losses, and arguments beside them, that fail late, are ignored, or can only be a mistake."""
    for key, problem in _problems(view):
        require(not problem, f"dpo.{key}", str(problem))
    _check_trainer_args(view)


def _problems(view: dict[str, Any]) -> Iterator[tuple[str, str | bool]]:
    """Key -> what is wrong with it, or nothing; each is asked for when those before it hold."""
    config = view["dpo"]
    names = config["loss_type"] if isinstance(config["loss_type"], list) else [config["loss_type"]]
    yield "loss_type", not names and "is an empty list; give one loss or more"
    for name in names:
        yield "loss_type", name not in LOSSES and f"no loss named {name!r}. {did_you_mean(str(name), LOSSES)}"
    twice = len(set(names)) < len(names)
    yield "loss_type", twice and f"found {names}; give each loss once, weighted by dpo.loss_weights"
    if (given := config["loss_weights"]) is not None:
        count = len(given) != len(names) and f"found {len(given)} weights for {len(names)} losses {names}"
        yield "loss_weights", count
        sound = all(math.isfinite(weight) and weight >= 0 for weight in given) and any(given)
        yield "loss_weights", not sound and f"found {given}, expected numbers of 0 or more, one of them above 0"

    smoothing, beta = config["label_smoothing"], config["beta"]
    yield "label_smoothing", not 0 <= smoothing < 0.5 and f"found {smoothing}, expected a share from 0 to below 0.5"
    ignored = smoothing != 0 and not set(SMOOTHED) & set(names)
    remedy = f"set it to 0, or use {', '.join(SMOOTHED)} (`robust` is DPO with a share of wrong labels)"
    yield "label_smoothing", ignored and f"found {smoothing}, which {' and '.join(names)} would ignore; {remedy}"
    missing = smoothing <= 0 and "exo_pair" in names
    yield "label_smoothing", missing and "found 0, but exo_pair needs a number above 0, such as 1e-3 (arXiv:2402.00856)"

    yield "beta", not 0 < beta < math.inf and f"found {beta}, expected a number above 0"
    for problem in implausible_betas(config)[: not config["allow_implausible"]]:
        yield "beta", f"{problem}. Change dpo.beta or dpo.loss_type, or set dpo.allow_implausible=true"
    unused = config["ref_model_name_or_path"] is not None and not needs_reference(config)
    why = "has no use, because sft alone compares with no reference; take it out, or add a loss that does"
    yield "ref_model_name_or_path", unused and why
    if view["training"]["per_device_train_batch_size"] == 1:
        for name in set(SORTED) & set(names):
            why = "sorts the pairs of a micro-batch, which is one pair; set training.per_device_train_batch_size to 2 or more"
            yield "loss_type", f"{name!r} {why}"


def implausible_betas(config: dict[str, Any]) -> list[str]:
    """Why `beta` is implausible with a loss, a line each."""
    beta, problems = config["beta"], []
    for name in weights(config):
        lowest, highest, published = _PLAUSIBLE[name]
        if lowest <= beta <= highest:
            continue
        if name == "sigmoid_norm":
            hint = (
                "it multiplies a mean over an answer's tokens; such a beta belongs to 'sigmoid', which takes their sum"
            )
        elif beta > highest:
            hint = "such a beta belongs to the length-normalised 'sigmoid_norm'"
        else:
            hint = "such a beta hardly holds the policy near the reference"
        problems.append(
            f"found {beta:g} with loss {name!r}; published is {published}, accepted {lowest:g} to {highest:g}: {hint}"
        )
    return problems


def _check_trainer_args(view: dict[str, Any]) -> None:
    """Arguments of TRL that a run would ignore, or that contradict a key of ours."""
    given, config = view["training"]["trainer_args"], view["dpo"]
    names = weights(config)
    divergence = given.get("f_divergence_type", "reverse_kl")
    divergences = ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
    without = [name for name in names if name not in DIVERGENCES]
    alpha = given.get("ld_alpha")
    refusals = {
        "sync_ref_model": given.get("sync_ref_model")
        and config["reference"] == "stored"
        and "changes the reference model while training, so nothing of it can be stored; set dpo.reference=online",
        "ref_model_sync_steps": not given.get("sync_ref_model") and "is ignored without sync_ref_model; take it out",
        "ref_model_mixup_alpha": not given.get("sync_ref_model") and "is ignored without sync_ref_model; take it out",
        "f_divergence_type": (
            divergence not in divergences and f"found {divergence!r}. {did_you_mean(str(divergence), divergences)}"
        )
        or (
            divergence != "reverse_kl"
            and without
            and f"{divergence} has no form for {' and '.join(without)}; only for {', '.join(DIVERGENCES)}"
        ),
        "f_alpha_divergence_coef": divergence != "alpha_divergence"
        and "is ignored without f_divergence_type: alpha_divergence; take it out",
        "discopop_tau": "discopop" not in names and "is ignored without dpo.loss_type=discopop; take it out",
        "use_weighting": given.get("use_weighting")
        and set(SORTED) & names.keys()
        and "gives each pair a weight, but aot and aot_unpaired sort the pairs; take it out or choose another loss",
        "ld_alpha": alpha is not None and not 0 <= float(alpha) <= 1 and f"found {alpha}, expected a share from 0 to 1",
    }
    for name, problem in refusals.items():
        require(not (name in given and problem), f"training.trainer_args.{name}", str(problem))
