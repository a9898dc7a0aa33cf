"""Checks of memory, time, disk and assets, and what they predict."""

import json
import os
import time

import pytest

from post_training.core import devices
from post_training.core.devices import Device
from post_training.core.fingerprint import FileHashes, file_sha256
from post_training.core.format import GIB
from post_training.preflight import assets, disk, flops, measurements, memory, resources, speed
from post_training.preflight.subject import Measurement


def rates_of(subject, base):
    """What a preflight would find for this subject."""
    wanted = measurements.work(subject)
    return [entry for entry in measurements.measurements(base) if measurements.same_work(entry, wanted)]


CPU = Device("CPU", 16 * GIB, 50e9)


def test_states_are_those_of_the_zero_paper(subject_of):
    """Rajbhandari et al. 2020, figure 1: with mixed precision and Adam, 16 bytes a parameter, divided over the ranks by stage."""
    n, ranks = 1_000_000_000, 8

    def states(stage):
        config = {"zero_optimization": {"stage": stage, "reduce_bucket_size": 1, "stage3_max_live_parameters": 1}}
        return sum(memory.states(subject_of(deepspeed__config=config, ranks=ranks))[:3])

    assert states(0) == 16 * n
    assert states(1) == 4 * n + 12 * n // ranks
    assert states(2) == 2 * n + 14 * n // ranks
    assert states(3) == 16 * n // ranks
    # Without DeepSpeed: float32 weights, gradients and moments, and the buckets of DDP.
    assert memory.states(subject_of()) == (4 * n, 4 * n, 8 * n, 4 * n)
    assert sum(memory.states(subject_of(training__trainer_args={"optim": "adafactor"}))[:3]) == 8 * n


def test_adapters_cost_what_is_trained(subject_of):
    subject = subject_of(model__lora={"r": 16}, ranks=1)
    trained = 16 * (2 * 65_536 + 3 * 163_840)
    assert memory.states(subject) == (2_000_000_000 + 4 * trained, 4 * trained, 8 * trained, 0)
    assert subject_of(model__lora={"r": 4, "target_modules": ["q_proj"]}).trainable == 4 * 65_536


def test_what_lowers_memory_lowers_the_prediction(subject_of):
    def peak(method="sft", **changes):
        return memory.predict(subject_of(method, **changes)).peak

    assert peak() < peak(training__gradient_checkpointing=False)
    many = {"training__effective_batch_size": 256}
    assert peak(**many) < peak(**many, training__per_device_train_batch_size=4)
    assert peak(deepspeed__config_path="zero3") < peak(deepspeed__config_path="zero2") < peak()
    assert peak(model__lora={}) < peak()
    assert peak(mix={"longest_row": 512}) < peak()
    kept = {"training__gradient_checkpointing": False}
    assert peak(model__attn_implementation="flash_attention_2", **kept) < peak(
        model__attn_implementation="eager", **kept
    )


def test_memory(subject_of):
    assert resources.memory_check(subject_of()).verdict == "ok"
    found = resources.memory_check(subject_of(gpu=Device("l4", 24 * GIB, 1e12)))
    assert found.verdict == "warning" and found.value.endswith(" of 24.0 GiB (l4)")
    large = {"parameters": 8_000_000_000, "layers": 32, "hidden": 4096, "intermediate": 14336}
    found = resources.memory_check(subject_of(shape=large))
    assert found.verdict == "failure" and "deepspeed.config_path=zero3" in found.remedy
    assert resources.memory_check(subject_of(shape=large, deepspeed__config_path="zero3")).verdict == "ok"
    unknown = resources.memory_check(subject_of(gpu=Device("unknown GPU", None, None)))
    assert (unknown.verdict, unknown.remedy) == ("warning", "name the GPUs with slurm.gpu_model")


def test_time_from_an_assumption_and_from_what_was_measured(subject_of, tmp_path):
    subject = subject_of()
    found = {check.name: check for check in speed.checks(subject)}
    assert {check.verdict for check in found.values()} == {"ok"}
    assert "(assumed: 30% of the peak of h100-80)" in found["resources.time"].value
    # 6 operations a parameter and token, and 2 for checkpointing: 30 % of 989 TFLOPS.
    rate = speed.tokens_per_second(subject)[0]
    assert rate == pytest.approx(0.3 * 989e12 / (8 * 0.94e9 * 1.07), rel=0.05)

    run = tmp_path / "outputs" / "sft-older"
    run.mkdir(parents=True)
    measured = {**measurements.work(subject), "tokens_per_second": 80_000.0, "world_size": 4}
    (run / "preflight.json").write_text(json.dumps({"measured": measured}))
    subject.rates = rates_of(subject, tmp_path / "outputs")
    assert speed.tokens_per_second(subject) == (20_000.0, "measured in sft-older")
    other = subject_of(shape={"parameters": 2_000_000_000})
    assert rates_of(other, tmp_path / "outputs") == []


def test_operations_of_a_token(subject_of):
    """By hand: 0.936 B multiplied parameters, 16 layers of attention 2,048 wide over documents of 2,000 tokens."""
    shape = subject_of().shape
    attention = 2 * 16 * 2048 * 2000
    forward = 2 * 936_000_000 + attention
    assert flops.per_token(shape, 2000) == flops.Flops(3 * forward, 3 * forward)
    assert flops.per_token(shape, 2000, checkpointing=True) == flops.Flops(3 * forward, 4 * forward)
    assert flops.per_token(shape, 2000, lora=True) == flops.Flops(2 * forward, 2 * forward)
    beside = flops.per_token(shape, 2000, reference=shape)
    assert beside == flops.Flops(3 * forward, 3 * forward + 2 * 1_000_000_000)
    cost = speed.predict(subject_of())
    assert (cost.model_flops_per_token, cost.flops_per_token) == (3 * forward, 4 * forward)
    assert (cost.device_peak_flops, speed.predict(subject_of(model__dtype="float32")).device_peak_flops) == (
        989e12,
        None,
    )


def test_attention_counts_squared_lengths_of_documents(subject_of, tmp_path, sft_rows):
    from post_training.data.view import open_rows

    subject = subject_of()
    subject.data = sft_rows
    lengths = open_rows(sft_rows).lengths().tolist()
    assert subject.context == pytest.approx(sum(n * n for n in lengths) / sum(lengths))
    assert min(lengths) < subject.context < max(lengths)


def test_a_newer_measurement_wins(subject_of, tmp_path):
    subject = subject_of()
    for number, name in enumerate(("sft-a", "sft-b")):
        folder = tmp_path / "outputs" / name
        folder.mkdir(parents=True)
        told = {**measurements.work(subject), "tokens_per_second": 1.0 + number, "world_size": 1}
        (folder / "preflight.json").write_text(json.dumps({"measured": told}))
        os.utime(folder / "preflight.json", (time.time() - number, time.time() - number))
    assert [entry.source for entry in rates_of(subject, tmp_path / "outputs")] == [
        "sft-a",
        "sft-b",
    ]


def slow(subject_of, tokens_per_second, **changes):
    subject = subject_of(**changes)
    subject.rates = [Measurement("a test", tokens_per_second, 8)]
    return subject


def test_an_unknown_device_has_no_time(subject_of):
    (found,) = speed.checks(subject_of(gpu=Device("unknown GPU", None, None)))
    assert (found.name, found.verdict) == ("resources.time", "warning")


def test_what_a_crash_would_cost(subject_of, verdicts):
    """25 steps of 64,000 tokens at 100 tokens/s: 640 s a step."""
    assert verdicts(speed.checks(slow(subject_of, 1e5)))["resources.checkpoint_interval"] == "ok"
    found = speed.checks(slow(subject_of, 100.0, checkpointing__save_steps=20))
    assert verdicts(found)["resources.checkpoint_interval"] == "warning"
    assert "set checkpointing.save_steps to 2" in found[1].remedy


def test_wall_time(subject_of):
    assert speed.wall_time(slow(subject_of, 1e5)).verdict == "ok"
    several = speed.wall_time(slow(subject_of, 100.0, slurm__wall_time="02:00:00"))
    assert several.verdict == "warning" and "02:00:00 for 4.4 h, 3 allocations" in several.value
    never = speed.wall_time(slow(subject_of, 100.0, slurm__wall_time="00:20:00"))
    assert never.verdict == "failure" and "raise slurm.wall_time" in never.remedy


def test_disk(subject_of, tmp_path, monkeypatch):
    subject = subject_of()
    files = disk.predict(subject)
    n = 1_000_000_000
    assert files.checkpoint_bytes == 12 * n and files.checkpoints_bytes == 12 * n  # 25 steps, one save
    assert disk.predict(subject_of(checkpointing__save_steps=2)).checkpoints_bytes == 36 * n  # two are kept
    everything = subject_of(checkpointing__save_steps=2, checkpointing__save_total_limit=None)
    assert disk.predict(everything).checkpoints_bytes == 13 * 12 * n
    models = subject_of(checkpointing__inference_checkpoint_steps=5)
    assert disk.predict(models).inference_checkpoints_bytes == 5 * 2 * n
    rooms = {1000: "ok", 20: "warning", 14: "failure"}
    for free, verdict in rooms.items():
        monkeypatch.setattr(disk, "left", lambda _, free=free: disk.Room(free * n, "a test"))
        assert disk.check_disk([subject], tmp_path).verdict == verdict
    # What an earlier attempt has written need not fit once more.
    (subject.run / "checkpoints").mkdir(parents=True)
    with open(subject.run / "checkpoints" / "weights", "wb") as file:
        file.truncate(12 * n)
    assert disk.check_disk([subject], tmp_path).verdict == "ok"


def test_a_quota_counts(tmp_path, monkeypatch):
    lustre = tmp_path / "lfs"
    lustre.write_text("#!/bin/sh\necho '        /scratch   900000  0  1000000 -  12 0 0 -'\n")
    lustre.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert disk.left(tmp_path) == disk.Room(100_000 * 1024, "quota, by lfs")
    assert disk.quota_left("/scratch  1000001* 900000 1000000 - 12 0 0 -") == 0
    assert disk.quota_left("/scratch  5 0 0 - 12 0 0 -") is None
    assert disk.quota_left("lfs: no quotas here") is None


def test_rows_that_are_not_those_of_the_mix(subject_of, tmp_path):
    shard = tmp_path / "data" / "tokenized" / "d" / "tokens.arrow"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"1234")
    made = shard.with_name("manifest.json")
    made.write_text(json.dumps({"files": [{"path": shard.name, "sha256": "aa"}]}))
    mix = {"shards": [{"path": "../../tokenized/d/tokens.arrow", "bytes": 4, "sha256": "aa"}]}
    subject = subject_of(mix=mix)
    assert assets.rows(subject).verdict == "ok"
    made.write_text(json.dumps({"files": [{"path": shard.name, "sha256": "bb"}]}))
    assert assets.rows(subject).verdict == "failure"
    made.write_text(json.dumps({"files": [{"path": shard.name, "sha256": "aa"}]}))
    shard.write_bytes(b"12345")
    found = assets.rows(subject)
    assert found.verdict == "failure" and "tokens.arrow: missing or another file" in found.value
    shard.unlink()
    assert assets.rows(subject).verdict == "failure"


def test_a_model_by_its_checksums(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    path = tmp_path / "manifest.json"
    files = [{"path": f"model/{file.name}", "sha256": file_sha256(file)} for file in folder.iterdir()]
    path.write_text(json.dumps({"folder": "model", "files": files}))

    def verdict():
        (found,) = assets.models({"sft model": path}, FileHashes(tmp_path / "hashes.json"))
        return found.verdict

    assert verdict() == "ok"
    (folder / "model.safetensors").write_text("another")
    assert verdict() == "failure"
    (folder / "model.safetensors").unlink()
    assert verdict() == "failure"
    (folder / "config.json").unlink()
    assert verdict() == "failure"


@pytest.mark.parametrize(
    "text,name",
    [
        ("NVIDIA H100 80GB HBM3", "h100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("gpu:gh200:4", "gh200"),
        ("gpu:a100:4(S:0-1)", None),  # of which there are three
        ("AMD Instinct MI250X 64", "mi250x"),
        ("NVIDIA GeForce RTX 4090 24", "rtx4090"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("NVIDIA H100 PCIe 80", "h100-pcie"),
        ("NVIDIA H100 NVL 93", "h100-94"),
        ("NVIDIA L40 45", "l40"),
        ("NVIDIA L40S 45", "l40s"),
        ("NVIDIA L4 22", "l4"),
        ("NVIDIA A10G 22", None),  # another board than the A10
        ("gpu:nvidia_h100_80gb_hbm3:4(S:0-1)", "h100-80"),
        ("something else", None),
    ],
)
def test_names_of_gpus(text, name):
    assert devices.by_words(text) == name


def test_devices_of_an_allocation(subject_of):
    view = subject_of().view
    assert devices.on_slurm(view, ["gpu:h200:8(S:0-1)"]).memory_bytes == 141 * GIB
    assert devices.on_slurm(view, ["gpu:8"]).memory_bytes is None
    view["slurm"]["gpu_model"] = "a100-64"
    assert devices.on_slurm(view, ["gpu:8"]).memory_bytes == 64 * GIB
    view["slurm"]["gpu_model"] = "a100-63"
    with pytest.raises(Exception, match=r"slurm\.gpu_model: found 'a100-63'\. Of the a100 there are a100-40, a100-64"):
        devices.on_slurm(view, [])


def test_without_slurm_here_nothing_is_said_of_the_cluster(subject_of, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    (check,) = resources.slurm([subject_of()])
    assert (check.verdict, check.value) == ("warning", "no sbatch here: Slurm was not asked")
