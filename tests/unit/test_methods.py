import inspect
import re

import pytest
from tiny import pipeline_of

from post_training import methods
from post_training.errors import ConfigError
from post_training.methods import dpo


def test_every_loss_of_the_installed_trl_is_offered():
    from trl.trainer.dpo_trainer import DPOTrainer

    source = inspect.getsource(DPOTrainer)
    branches = set(re.findall(r"loss_type == \"(\w+)\"", source))
    assert branches, "TRL chooses its loss in another way now"
    assert set(dpo.LOSSES) == branches


@pytest.mark.parametrize("name", methods.names())
def test_every_method_names_its_rows_and_its_configuration(name):
    module = methods.load(name)
    assert module.ROWS in ("messages", "preference")
    assert module.Config().init_from
    assert module.config_class().__name__.endswith("Config")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dpo__loss_type": "sigmod"}, "dpo.loss_type: no loss named 'sigmod'. Did you mean 'sigmoid'"),
        ({"dpo__loss_type": ["sigmoid", "kto_pair"]}, "dpo.loss_type: no loss named 'kto_pair'"),
        ({"dpo__beta": 0.0}, "dpo.beta: found 0.0, expected a number above 0"),
    ],
)
def test_dpo_refuses_what_trl_would_refuse_later(template, change, message):
    view = pipeline_of(template, "dpo", **change).views["dpo"]
    with pytest.raises(ConfigError, match=re.escape(message)):
        dpo.check(view)
