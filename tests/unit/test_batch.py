"""Batch arithmetic and length."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from post_training import batch
from post_training.batch import Topology
from post_training.config import resolve
from post_training.errors import ConfigError


def view(**training) -> dict:
    return resolve({"training": {"max_steps": 5, **training}, "sft": {"max_seq_length": 4096}}).views["sft"]


def test_the_line_that_is_printed():
    made = view(effective_batch_size=96, per_device_train_batch_size=2)
    plan = batch.batch_plan(made, "sft", Topology(2, 4, "GPU"))
    assert plan.describe(1204) == (
        "2 nodes x 4 GPUs x 2 rows x 6 accumulation = 96 rows, 393,216 tokens a step; 1,204 steps"
    )


def test_refusal_names_the_nearest_numbers():
    with pytest.raises(ConfigError, match="96 rows do not divide over 1 node x 7 GPUs x 1 row = 7; use 91 or 98"):
        batch.batch_plan(view(effective_batch_size=96), "sft", Topology(1, 7, "GPU"))


@given(st.integers(1, 500), st.integers(1, 8), st.integers(1, 8), st.integers(1, 16))
def test_accumulation_is_exact_or_refused_with_numbers_that_work(rows, nodes, devices, per_device):
    topology = Topology(nodes, devices, "GPU")
    made = view(effective_batch_size=rows, per_device_train_batch_size=per_device)
    try:
        plan = batch.batch_plan(made, "sft", topology)
        assert plan.accumulation * plan.per_device * topology.world_size == rows
    except ConfigError as error:
        text = str(error).split("; use ")[1].split(", or ")[0]
        for number in text.split(" or "):
            made["training"]["effective_batch_size"] = int(number)
            assert batch.batch_plan(made, "sft", topology).rows == int(number)


@given(st.integers(1, 10_000), st.integers(1, 64), st.integers(1, 5))
def test_steps(rows, size, epochs):
    assume(rows >= 1)
    assert batch.steps(view(max_steps=None, num_training_samples=rows, effective_batch_size=size), "sft") == -(
        -rows // size
    )
    tokens = view(max_steps=None, num_training_tokens=rows, effective_batch_size=size)
    assert batch.steps(tokens, "sft") == -(-rows // (size * 4096))
    in_epochs = view(max_steps=None, num_train_epochs=epochs, effective_batch_size=size)
    assert batch.steps(in_epochs, "sft") is None
    assert batch.steps(in_epochs, "sft", rows) == -(-rows // size) * epochs


def test_local_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert batch.local_topology(view()) == Topology(1, 3, "GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert batch.local_topology(view()) == Topology(1, 1, "CPU")
