import inspect
import re

import pytest
from tiny import pipeline_of

from post_training.errors import ConfigError
from post_training.methods import kto


def test_every_kto_loss_of_the_installed_trl_is_offered():
    from trl.trainer.kto_config import KTOConfig

    assert tuple(KTOConfig.__dataclass_fields__["loss_type"].metadata["choices"]) == kto.LOSSES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kto__loss_type": "kt0"}, "kto.loss_type: no loss named 'kt0'. Did you mean 'kto'"),
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
