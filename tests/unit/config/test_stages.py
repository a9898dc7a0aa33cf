"""Chains of stages: by the methods' names, and with names of their own."""

import re

import pytest

from post_training.config import resolve
from post_training.core.errors import ConfigError

CHAIN = {
    "method": "kto",
    "training": {"max_steps": 3, "learning_rate": 1e-3},
    "sft": {"max_seq_length": 128},
    "maths": {"method": "sft", "init_from": "sft", "packing": False, "training": {"learning_rate": 2e-3}},
    "dpo": {"init_from": "maths"},
    "kto": {"init_from": "dpo"},
}


def test_a_chain_in_its_order_with_each_stages_own_keys():
    pipeline = resolve(CHAIN)
    assert pipeline.stages == ["sft", "maths", "dpo", "kto"]
    views = pipeline.views
    assert [(view["stage"], view["method"]) for view in views.values()] == [
        ("sft", "sft"), ("maths", "sft"), ("dpo", "dpo"), ("kto", "kto"),
    ]  # fmt: skip
    assert (views["sft"]["sft"]["packing"], views["maths"]["sft"]["packing"]) == (True, False)
    assert (views["sft"]["sft"]["max_seq_length"], views["maths"]["sft"]["max_seq_length"]) == (128, 2048)
    assert (views["dpo"]["training"]["learning_rate"], views["maths"]["training"]["learning_rate"]) == (1e-3, 2e-3)


@pytest.mark.parametrize("stage", ["sft", "maths", "dpo", "kto"])
def test_a_run_is_told_the_chain_up_to_itself(stage):
    pipeline = resolve(CHAIN)
    again = resolve(pipeline.frozen(stage))
    assert again.stages == pipeline.stages[: pipeline.stages.index(stage) + 1]
    assert again.views == {name: pipeline.views[name] for name in again.stages}


def test_the_command_line_reaches_a_named_stage():
    file = CHAIN | {"data": {"datasets": [{"path": "a"}]}}
    words = "method=maths maths.packing=true maths.training.max_steps=7 maths.data.datasets[0].weight=0.5"
    pipeline = resolve(file, {"set": words})
    assert pipeline.stages == ["sft", "maths"]
    assert pipeline.last["sft"]["packing"] is True
    assert (pipeline.last["training"]["max_steps"], pipeline.views["sft"]["training"]["max_steps"]) == (7, 3)
    weights = [view["data"]["datasets"][0]["weight"] for view in pipeline.views.values()]
    assert weights == [1.0, 0.5]
    assert resolve({}, {"set": "method=two two.method=sft two.init_from=sft"}).stages == ["sft", "two"]


def test_auto_is_the_one_sft_stage():
    assert resolve({"method": "dpo", "first": {"method": "sft"}}).stages == ["first", "dpo"]
    assert resolve({"method": "dpo", "sft": {}, "kto": {}}).stages == ["sft", "dpo"]
    with pytest.raises(ConfigError, match=r"dpo\.init_from: auto could be sft or maths; name the one to start from"):
        resolve(CHAIN | {"method": "dpo", "dpo": {}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maths": {"method": "stf"}}, "maths.method: found 'stf'. Did you mean 'sft'"),
        ({"maths": {"init_from": "sft"}}, "maths: unknown key."),
        ({"kto": {"method": "sft"}}, "kto.method: found sft, but kto is a method itself"),
        ({"my-stage": {"method": "sft"}}, "my-stage: cannot name a stage; use small letters"),
        ({"base": {"method": "sft"}}, "base: cannot name a stage"),
        ({"maths": {"method": "sft", "bet": 1}}, "maths.bet: unknown key."),
        ({"maths": {"method": "sft", "packing": "x"}}, "maths.packing: found 'x', expected"),
        (
            {"maths": {"method": "sft", "training": {"max_step": 1}}},
            "maths.training.max_step: unknown key. Did you mean",
        ),
        (
            {"method": "dpo", "maths": {"method": "sft", "init_from": "dpo"}},
            "maths.init_from: dpo cannot start from itself",
        ),
        (
            {"dpo": {"init_from": "meths"}},
            "dpo.init_from: found 'meths', expected base or a stage. Did you mean 'maths'",
        ),
        ({"method": "meths"}, "method: found 'meths'. Did you mean 'maths'"),
    ],
)
def test_mistakes_name_the_key(change, message):
    with pytest.raises(ConfigError, match="^config error: " + re.escape(message)):
        resolve(CHAIN | change)
