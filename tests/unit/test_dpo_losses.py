"""The lists of methods/dpo/losses.py against the installed TRL, and what is refused when the configuration is read."""

import inspect
import math
import re
from types import SimpleNamespace

import pytest
from tiny import view_of

from post_training import methods
from post_training.core.errors import ConfigError
from post_training.methods import dpo
from post_training.methods.dpo import losses


@pytest.fixture(scope="module")
def branches() -> dict[str, str]:
    """Loss -> the code of its branch in TRL's `_compute_loss`."""
    from trl.trainer.dpo_trainer import DPOTrainer

    source = inspect.getsource(DPOTrainer._compute_loss)
    parts = re.split(r"(?:el)?if loss_type == \"(\w+)\":", source)
    assert len(parts) > 3, "TRL chooses its loss in another way now"
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_loss_of_the_installed_trl_is_offered(branches):
    assert set(losses.LOSSES) == set(branches)


def test_label_smoothing_is_used_where_we_say(branches):
    assert {name for name, code in branches.items() if "label_smoothing" in code} == set(losses.SMOOTHED)


def test_losses_that_sort_a_micro_batch(branches):
    assert {name for name, code in branches.items() if "torch.sort" in code} == set(losses.SORTED)


def test_losses_with_other_divergences():
    from trl.trainer.dpo_trainer import DPOTrainer

    listed = re.search(r"f_divergence_loss_types = \{(.*?)\}", inspect.getsource(DPOTrainer.__init__), re.DOTALL)
    assert listed and set(re.findall(r"\"(\w+)\"", listed[1])) == set(losses.DIVERGENCES)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_start_loss_is_trls_loss_of_equal_models(template, name):
    """TRL's own arithmetic, on a policy whose log-probabilities are the reference's."""
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.utils import FusedCausalLMOutput

    view = view_of(
        template, "dpo", dpo__loss_type=name, dpo__beta=0.2, dpo__label_smoothing=0.1 * (name in losses.SMOOTHED)
    )
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -0.5], [-2.0, -2.0], [-0.1, -4.0]])
    found = FusedCausalLMOutput(
        log_probs=logps, entropy=logps, mean_logits=logps, is_top1=logps > -1.0, label_mask=logps < 0, loss=logps.mean()
    )
    accelerator = SimpleNamespace(device="cpu", gather=lambda value: value, gather_for_metrics=lambda value: value)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[name], loss_weights=[1.0], beta=0.2,
        label_smoothing=view["dpo"]["label_smoothing"], use_weighting=False, args=SimpleNamespace(discopop_tau=0.05),
        _metrics={"train": __import__("collections").defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.ones(4, 3, dtype=torch.long),
        "attention_mask": torch.ones(4, 3, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1, 1]] * 4),
        "ref_chosen_logps": logps.sum(dim=1)[:2],
        "ref_rejected_logps": logps.sum(dim=1)[2:],
    }
    loss = float(DPOTrainer._compute_loss(trainer, lambda **_: found, inputs, return_outputs=False))
    expected = losses.start_loss(view)
    if name == "sft":
        assert expected is None
    else:
        assert loss == pytest.approx(expected, rel=1e-6)


def test_start_loss_of_several():
    config = {"loss_type": ["sigmoid", "hinge"], "loss_weights": [0.5, 2.0], "beta": 0.1, "label_smoothing": 0.0}
    view = {"dpo": config, "training": {"trainer_args": {}}}
    assert losses.start_loss(view) == pytest.approx(0.5 * math.log(2) + 2)
    view["training"]["trainer_args"] = {"use_weighting": True}
    assert losses.start_loss(view) is None


ARGS = "training__trainer_args"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dpo__loss_type": "sigmod"}, "dpo.loss_type: no loss named 'sigmod'. Did you mean 'sigmoid'"),
        ({"dpo__loss_type": ["sigmoid", "kto_pair"]}, "dpo.loss_type: no loss named 'kto_pair'"),
        ({"dpo__loss_type": []}, "dpo.loss_type: is an empty list"),
        ({"dpo__loss_type": ["sft", "sft"]}, "dpo.loss_type: found ['sft', 'sft']; give each loss once"),
        ({"dpo__loss_weights": [1.0, 2.0]}, "dpo.loss_weights: found 2 weights for 1 losses"),
        ({"dpo__loss_weights": [-1.0]}, "dpo.loss_weights: found [-1.0], expected numbers of 0 or more"),
        ({"dpo__beta": 0.0}, "dpo.beta: found 0.0, expected a number above 0"),
        ({"dpo__beta": 5.0}, "dpo.beta: found 5 with loss 'sigmoid'; published is 0.01 to 0.5, accepted 0.001 to 1: "
                             "such a beta belongs to the length-normalised 'sigmoid_norm'"),
        ({"dpo__loss_type": "sigmoid_norm"}, "dpo.beta: found 0.1 with loss 'sigmoid_norm'; published is 5"),
        ({"dpo__loss_type": ["sigmoid_norm", "sigmoid"], "dpo__beta": 5.0}, "dpo.beta: found 5 with loss 'sigmoid'"),
        ({"dpo__label_smoothing": 0.1}, "dpo.label_smoothing: found 0.1, which sigmoid would ignore"),
        ({"dpo__label_smoothing": 0.5, "dpo__loss_type": "robust"}, "dpo.label_smoothing: found 0.5"),
        ({"dpo__loss_type": "exo_pair"}, "dpo.label_smoothing: found 0, but exo_pair needs a number above 0"),
        ({"dpo__loss_type": "aot", "training__per_device_train_batch_size": 1}, "dpo.loss_type: 'aot' sorts the pairs"),
        ({"dpo__reference": "onlin"}, "dpo.reference: found 'onlin'. Did you mean 'online'"),
        ({"dpo__loss_type": "sft", "dpo__ref_model_name_or_path": "m"}, "dpo.ref_model_name_or_path: has no use"),
        ({"dpo__reference_batch_size": 0}, "dpo.reference_batch_size: found 0"),
        ({ARGS: {"sync_ref_model": True}}, "training.trainer_args.sync_ref_model: changes the reference model"),
        ({ARGS: {"ref_model_sync_steps": 3}}, "training.trainer_args.ref_model_sync_steps: is ignored"),
        ({ARGS: {"f_divergence_type": "kl"}}, "training.trainer_args.f_divergence_type: found 'kl'"),
        ({ARGS: {"f_divergence_type": "forward_kl"}, "dpo__loss_type": "apo_zero"},
         "training.trainer_args.f_divergence_type: forward_kl has no form for apo_zero"),
        ({ARGS: {"f_alpha_divergence_coef": 0.3}}, "training.trainer_args.f_alpha_divergence_coef: is ignored"),
        ({ARGS: {"discopop_tau": 0.1}}, "training.trainer_args.discopop_tau: is ignored"),
        ({ARGS: {"use_weighting": True}, "dpo__loss_type": "aot"}, "training.trainer_args.use_weighting: gives each pair"),
        ({ARGS: {"ld_alpha": 2}}, "training.trainer_args.ld_alpha: found 2"),
    ],
)  # fmt: skip
def test_mistakes_are_found_when_the_configuration_is_read(template, change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        dpo.check(view_of(template, "dpo", **change))


@pytest.mark.parametrize(
    "change",
    [
        {"dpo__beta": 5.0, "dpo__allow_implausible": True},
        {"dpo__beta": 5.0, "dpo__loss_type": "sigmoid_norm"},
        {"dpo__beta": 0.05, "dpo__loss_type": "apo_zero"},
        {"dpo__beta": 0.01},
        {"dpo__loss_type": ["sigmoid", "sft"], "dpo__loss_weights": [1.0, 0.2]},
        {"dpo__loss_type": "robust", "dpo__label_smoothing": 0.1},
        {ARGS: {"sync_ref_model": True, "ref_model_sync_steps": 3}, "dpo__reference": "online"},
        {ARGS: {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3, "ld_alpha": 0.5}},
    ],
)
def test_published_settings_are_accepted(template, change):
    dpo.check(view_of(template, "dpo", **change))


def test_what_trl_calls_precompute_is_a_key_of_ours(template):
    from post_training.training.arguments import _trainer_args

    view = view_of(template, "dpo")
    decided = dict.fromkeys(dpo.training_arguments(view), "the section dpo")
    with pytest.raises(ConfigError, match="precompute_ref_log_probs: is decided by the section dpo"):
        _trainer_args({"precompute_ref_log_probs": True}, decided, methods.config_class("dpo"))
