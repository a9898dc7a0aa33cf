"""bitsandbytes is imported where it is used, and nowhere else: with PEFT it takes seconds of every start."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from post_training.models.quantization import leave_out_unless_used


@pytest.mark.parametrize(
    "stage,view,used",
    [
        ("train", {"model": {"quantization": None}, "training": {"trainer_args": {}}}, False),
        ("train", {"model": {"quantization": {"bits": 4}}}, True),
        ("train", {"training": {"trainer_args": {"optim": "adamw_8bit"}}}, True),
        ("export", {"quantization": {"bits": 4}}, True),
        ("generate", {}, True),
        ("evaluate", {}, False),
    ],
)
def test_it_is_there_where_it_may_be_used(monkeypatch, stage, view, used):
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    leave_out_unless_used(SimpleNamespace(stage=stage, config=view, runtime={"pipeline": view}))
    there = importlib.util.find_spec("bitsandbytes") is not None
    sys.modules.pop("bitsandbytes", None)
    assert there is used
