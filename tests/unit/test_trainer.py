"""What `training/trainer.py` and the methods rely on in TRL and Transformers: a new version must not change it unseen."""

import inspect

import pytest
from transformers import Trainer
from trl import DPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer

from post_training import methods
from post_training.training.trainer import Monitored, trainer_class


def parameters(method) -> list[str]:
    return list(inspect.signature(method).parameters)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        ("_get_grad_norm", ["self", "model", "grad_norm"]),
        ("log", ["self", "logs", "start_time"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
    ],
)
def test_the_methods_that_are_overridden_have_the_same_arguments(name, expected):
    assert parameters(getattr(Trainer, name)) == expected
    for trainer in (SFTTrainer, DPOTrainer, KTOTrainer):
        if name in vars(trainer):
            assert parameters(vars(trainer)[name]) in (expected, ["self", "args", "kwargs"])
            assert f"super().{name}(" in inspect.getsource(vars(trainer)[name])


@pytest.mark.parametrize(
    ("caller", "calls"),
    [
        ("_run_epoch", ["self.training_step(model, inputs, num_items_in_batch)",
                        "self._get_grad_norm(model, grad_norm=grad_norm)",
                        "self.callback_handler.on_step_end(",
                        "self._maybe_log_save_evaluate("]),
        ("_maybe_log_save_evaluate", ["self.log(logs, start_time)",
                                      "self._save_checkpoint(model, trial)",
                                      "self.callback_handler.on_save("]),
        ("_inner_training_loop", ["self._tr_loss = torch.tensor(0.0", "self._globalstep_last_logged = ",
                                  "self.callback_handler.on_train_begin(", "self._run_epoch("]),
    ],
)  # fmt: skip
def test_transformers_calls_them_in_this_order(caller, calls):
    source = inspect.getsource(getattr(Trainer, caller))
    found = [source.index(call) for call in calls]
    assert found == sorted(found)
    assert all(
        source.count(call) == 1 for call in calls if call.startswith(("self.training", "self._get", "self._save"))
    )


@pytest.mark.parametrize("method", methods.names())
def test_a_trainer_is_monitored_and_its_calls_reach_trl(method):
    found = trainer_class(method)
    order = [cls.__name__ for cls in found.__mro__]
    trl = next(name for name in order if name in ("SFTTrainer", "DPOTrainer", "KTOTrainer", "RewardTrainer"))
    assert order.index("Monitored") < order.index("OnRows") < order.index(trl) < order.index("Trainer")
    assert found.training_step is Monitored.training_step


@pytest.mark.parametrize(
    ("trainer", "name"),
    [
        (DPOTrainer, "_prepare_dataset"),
        (DPOTrainer, "_precompute_ref_logps"),
        (KTOTrainer, "_prepare_dataset"),
        (RewardTrainer, "_prepare_dataset"),
    ],
)
def test_trl_prepares_data_in_its_constructor_only_where_it_is_overridden(trainer, name):
    assert f"self.{name}(" in inspect.getsource(trainer.__init__)


def test_trl_hashes_the_weights_by_this_name():
    from trl.trainer import dpo_trainer

    assert "hash_module(" in inspect.getsource(dpo_trainer.DPOTrainer.__init__) and callable(dpo_trainer.hash_module)


@pytest.mark.parametrize("trainer", [SFTTrainer, DPOTrainer, KTOTrainer, RewardTrainer])
def test_trl_sums_up_metrics_between_logs(trainer):
    assert 'self._metrics = {"train": defaultdict(list)' in inspect.getsource(trainer.__init__)
    assert "self._metrics[mode].clear()" in inspect.getsource(trainer.log)
