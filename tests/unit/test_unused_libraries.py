"""bitsandbytes and wandb are imported where they are used, and nowhere else: they take seconds of every start."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from post_training.core.unused_libraries import hide_unused


@pytest.mark.parametrize(
    "stage,view,used",
    [
        ("train", {"model": {"quantization": None}, "training": {"trainer_args": {}}}, set()),
        ("train", {"model": {"quantization": {"bits": 4}}}, {"bitsandbytes"}),
        ("train", {"training": {"trainer_args": {"optim": "adamw_8bit"}}}, {"bitsandbytes"}),
        ("train", {"logging": {"report_to": ["tensorboard", "wandb"], "wandb_project": None}}, {"wandb"}),
        ("export", {"quantization": {"bits": 4}}, {"bitsandbytes"}),
        ("generate", {}, {"bitsandbytes"}),
        ("evaluate", {}, set()),
    ],
)
def test_they_are_there_where_they_may_be_used(monkeypatch, stage, view, used):
    names = ("bitsandbytes", "wandb")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    hide_unused(SimpleNamespace(stage=stage, config=view, runtime={"pipeline": view}))
    there = {name for name in names if importlib.util.find_spec(name)}
    for name in names:
        sys.modules.pop(name, None)
    assert there == used
