import inspect
import re

import pytest
from tiny import pipeline_of

from post_training.core.errors import ConfigError
from post_training.methods import kto


def test_every_kto_loss_of_the_installed_trl_is_offered():
    from trl.trainer.kto_config import KTOConfig

    assert tuple(KTOConfig.__dataclass_fields__["loss_type"].metadata["choices"]) == kto.LOSSES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kto__loss_type": "kt0"}, "kto.loss_type: found 'kt0'. Did you mean 'kto'"),
        ({"kto__beta": -1.0}, "kto.beta: found -1.0, expected a number above 0"),
        ({"kto__desirable_weight": 0.0}, "kto.desirable_weight: found 0.0, expected a number above 0"),
        ({"training__per_device_train_batch_size": 1}, "kto.training.per_device_train_batch_size: found 1, expected 2"),
    ],
)
def test_kto_refuses_what_trl_would_refuse_later(template, change, message):
    view = pipeline_of(template, "kto", **change).views["kto"]
    with pytest.raises(ConfigError, match=re.escape(message)):
        kto.check(view)


def test_only_the_kl_term_needs_two_rows_a_device(template):
    alone = {"training__per_device_train_batch_size": 1, "kto__loss_type": "apo_zero_unpaired"}
    view = pipeline_of(template, "kto", **alone).views["kto"]
    kto.check(view)
    assert not kto.micro_batch_decides(view)
    assert kto.micro_batch_decides(pipeline_of(template, "kto").views["kto"])


def test_the_answers_of_the_kl_term_come_from_the_row_before():
    """And so do TRL's: its `add_kl_completion_ids` turns a batch of the size of a micro-batch by one."""
    from trl.trainer.kto_trainer import KTOTrainer

    source = inspect.getsource(KTOTrainer._prepare_dataset)
    assert '[examples["completion_ids"][-1]] + examples["completion_ids"][:-1]' in source
    assert "batch_size=args.per_device_train_batch_size" in source


@pytest.mark.parametrize(
    ("share", "weights", "expected"),
    [
        (0.5, (1.0, 1.0), None),
        (0.55, (1.0, 1.0), None),
        (0.8, (1.0, 1.0), "80% of the rows are desirable: together they weigh 4 times as much as the others, "),
        (0.8, (1.0, 1.0), "set kto.undesirable_weight=4"),
        (0.8, (1.0, 3.5), None),
        (0.25, (1.0, 1.0), "set kto.desirable_weight=3"),
        (1.0, (1.0, 1.0), "all rows are desirable"),
        (0.0, (1.0, 1.0), "all rows are undesirable"),
    ],
)
def test_weights_that_do_not_fit_the_rows_are_told(share, weights, expected):
    said = kto.balance(dict(zip(("desirable_weight", "undesirable_weight"), weights, strict=True)), share)
    assert (said is None) if expected is None else (expected in said)
