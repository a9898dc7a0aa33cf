"""Batch arithmetic and length."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import view_of

from post_training.config import batch, resolve
from post_training.config.batch import Topology
from post_training.core import devices
from post_training.core.errors import ConfigError


def view(**training) -> dict:
    return resolve({"training": {"max_steps": 5, **training}, "sft": {"max_seq_length": 4096}}).views["sft"]


def test_the_line_that_is_printed():
    made = view(effective_batch_size=96, per_device_train_batch_size=2)
    plan = batch.batch_plan(made, "sft", Topology(2, 4, "GPU"))
    assert plan.describe(1204) == (
        "2 nodes x 4 GPUs x 2 sequences x 6 accumulation = 96 sequences, 393,216 tokens a step; 1,204 steps"
    )


def test_an_automatic_micro_batch_is_decided_by_the_job():
    made = view(effective_batch_size=96, per_device_train_batch_size="auto")
    plan = batch.batch_plan(made, "sft", Topology(2, 4, "GPU"))
    assert plan.describe(1204) == (
        "2 nodes x 4 GPUs x 12 sequences, as many at a time as fit, = 96 sequences, 393,216 tokens a step; 1,204 steps"
    )
    with pytest.raises(
        ConfigError, match="96 sequences do not divide over 1 node x 7 GPUs x 1 sequence = 7; use 91 or"
    ):
        batch.batch_plan(made, "sft", Topology(1, 7, "GPU"))


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("sft", "many", "found 'many', expected a number or auto"),
        ("sft", 0, "found 0, expected 1 or more"),
        ("kto", "auto", "rows are compared within a micro-batch"),
    ],
)
def test_micro_batches_that_cannot_be(template, method, value, message):
    with pytest.raises(ConfigError, match=message):
        batch.check_length(view_of(template, method, training__per_device_train_batch_size=value), method)


def test_refusal_names_the_nearest_numbers():
    with pytest.raises(
        ConfigError, match="96 sequences do not divide over 1 node x 7 GPUs x 1 sequence = 7; use 91 or 98"
    ):
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


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 64), st.sampled_from([0.3, 1, 1.5, 2, 5]))
def test_steps(rows, size, epochs):
    def steps(given_rows=None, **length):
        training = dict.fromkeys(batch.LENGTHS) | {"effective_batch_size": size} | length
        return batch.steps({"training": training, "sft": {"max_seq_length": 4096}}, "sft", given_rows)

    assert steps(num_training_samples=rows) == -(-rows // size)
    assert steps(num_training_tokens=rows) == -(-rows // (size * 4096))
    assert steps(num_train_epochs=epochs) is None
    assert steps(rows, num_train_epochs=epochs) == math.ceil(rows * epochs / size)


def test_local_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert batch.local_topology(view()) == Topology(1, 3, "GPU")
    for visible, count in (("MIG-5f2a,MIG-77b1", 2), ("0,-1,2", 1), ("NoDevFiles", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert devices.count_gpus() == count
    # Of AMD's lists the second picks from what the first leaves.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "2")
    assert devices.count_gpus() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert batch.local_topology(view()) == Topology(1, 1, "CPU")


@pytest.mark.parametrize(
    "files,count",
    [
        ({"/proc/driver/nvidia/gpus/0000:01:00.0": None, "/dev/nvidia0": "", "/dev/nvidiactl": ""}, 1),
        ({"/dev/nvidia0": "", "/dev/nvidia1": "", "/dev/nvidiactl": ""}, 2),
        ({"/dev/dxg": "", "/usr/lib/wsl/lib/nvidia-smi": "#!/bin/sh\necho 'GPU 0: A'\necho 'GPU 1: B'\n"}, 2),
        ({"/dev/dxg": ""}, 0),
        ({"/dev/kfd": "", "/sys/class/kfd/kfd/topology/nodes/0/gpu_id": "0\n", "/sys/class/kfd/kfd/topology/nodes/1/gpu_id": "7\n"}, 1),
        ({"/sys/class/kfd/kfd/topology/nodes/1/gpu_id": "7\n"}, 0),
    ],
)  # fmt: skip
def test_gpus_of_a_machine(monkeypatch, tmp_path, files, count):
    """On trees as NVIDIA's driver, a sandbox without its folder, WSL, AMD's driver and a container without the device have."""
    for path, text in files.items():
        file = tmp_path / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.mkdir() if text is None else file.write_text(text)
        file.chmod(0o755)
    for name in ("CUDA", "ROCR", "HIP"):
        monkeypatch.delenv(f"{name}_VISIBLE_DEVICES", raising=False)
    found, exists = devices.glob.glob, devices.os.path.exists
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(devices, "_WSL_SMI", str(tmp_path / "usr/lib/wsl/lib/nvidia-smi"))
    monkeypatch.setattr(devices.glob, "glob", lambda path: found(f"{tmp_path}{path}"))
    monkeypatch.setattr(
        devices.os.path, "exists", lambda path: exists(f"{tmp_path}{path}" if str(path).startswith("/dev/") else path)
    )
    devices._gpus_of_wsl.cache_clear()
    try:
        assert devices.count_gpus() == count
    finally:
        devices._gpus_of_wsl.cache_clear()
