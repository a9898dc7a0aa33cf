import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import train_task, view_of

from post_training.config.batch import Topology
from post_training.core.errors import UserError
from post_training.core.task import Task
from post_training.launch import environment, launcher
from post_training.launch.processes import Ended
from post_training.run_dir.checkpoints import mark_complete

CPU2 = Topology(1, 2, "CPU")


def test_libraries_of_an_offline_cpu_run(template):
    view = view_of(template, logging__report_to=["wandb"], logging__wandb_project="mine")
    assert environment.library_environment(view, Path("out/sft-x-1"), "CPU") == {
        "TENSORBOARD_LOGGING_DIR": "out/sft-x-1/logs",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_DIR": "out/sft-x-1/logs",
        "WANDB_RUN_ID": "sft-x-1",
        "WANDB_RESUME": "allow",
        "WANDB_CONSOLE": "off",
        "WANDB_PROJECT": "mine",
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }


def test_deepspeed_is_not_told_to_use_the_cpu(template):
    view = view_of(template, deepspeed__config={"zero_optimization": {"stage": 2}})
    found = environment.library_environment(view, Path("out/sft-x-1"), "CPU")
    assert "ACCELERATE_USE_CPU" not in found
    assert found["DS_ACCELERATOR"] == "cpu"


def test_libraries_of_an_online_gpu_run_stay_out_of_the_way(template):
    found = environment.library_environment(view_of(template, offline=False), Path("out/sft-x-1"), "GPU")
    assert sorted(found) == ["HF_HUB_DISABLE_TELEMETRY", "TENSORBOARD_LOGGING_DIR", "TOKENIZERS_PARALLELISM"]


def test_deterministic_kernels_are_asked_for_before_the_libraries_start(template):
    view = view_of(template, offline=False, training__deterministic=True)
    found = environment.library_environment(view, Path("out/sft-x-1"), "GPU")
    assert (found["CUBLAS_WORKSPACE_CONFIG"], found["FLASH_ATTENTION_DETERMINISTIC"]) == (":4096:8", "1")


def test_environment_of_the_second_rank():
    # Snakemake sets OMP_NUM_THREADS to the rule's cores, for one process.
    base = {"PATH": "/bin", "A": "b", "OMP_NUM_THREADS": "8"}
    found = environment.rank_environment(CPU2, 1, ("127.0.0.1", 29511), base, 8)
    assert found == {
        "PATH": "/bin",
        "A": "b",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
        "OMP_NUM_THREADS": "4",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def test_ranks_count_through_the_nodes():
    found = environment.rank_environment(Topology(2, 4, "GPU"), 5, ("node0", 20001), {}, 32)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("5", "1", "8", "4")


def test_a_rank_alone_forms_no_group_and_sees_one_gpu():
    alone = Topology(1, 1, "GPU")
    found = environment.rank_environment(alone, 0, ("x", 1), {"CUDA_VISIBLE_DEVICES": "3,5"}, 8, group=False)
    assert "LOCAL_RANK" not in found
    assert found["CUDA_VISIBLE_DEVICES"] == "3"
    assert "HIP_VISIBLE_DEVICES" not in found
    amd = environment.rank_environment(alone, 0, ("x", 1), {"ROCR_VISIBLE_DEVICES": "4,5"}, 8, group=False)
    assert amd["HIP_VISIBLE_DEVICES"] == "0"  # of the two that ROCR leaves
    assert environment.rank_environment(alone, 0, ("x", 1), {}, 8)["LOCAL_RANK"] == "0"


def test_rank_command():
    assert launcher.rank_command(Path("out/logs/task.json"), "/env/python") == [
        "/env/python", "-u", "-m", "post_training.commands.rank", "out/logs/task.json",
    ]  # fmt: skip


def test_task_file_round_trip(tmp_path, model_manifest, sft_rows, template):
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template)
    found = Task.read(task.saved())
    assert (found.config, found.runtime, found.inputs, found.output, found.spec) == (
        task.config, task.runtime, task.inputs, task.output, task.spec,
    )  # fmt: skip


def test_a_trained_run_without_manifest_is_finished_without_training(
    tmp_path, model_manifest, sft_rows, template, monkeypatch, capsys
):
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template)
    last = tmp_path / "run" / "checkpoints" / "checkpoint-6"
    last.mkdir(parents=True)
    (last / "model.safetensors").write_bytes(b"weights")
    mark_complete(last, 6, world_size=1, tokens=600, trained_tokens=60, seconds=1.5)
    logs = tmp_path / "run" / "logs"
    logs.mkdir()
    (logs / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n{"step": 6, "loss": 2.0, "epoch": 0.1}\n')
    monkeypatch.setattr(launcher, "run_together", lambda *_, **__: pytest.fail("trained again"))
    assert launcher.run(task) == 0
    manifest = json.loads(task.output.read_text())
    assert manifest["final_checkpoint"] == "checkpoints/checkpoint-6"
    assert (manifest["steps"], manifest["tokens"], manifest["trained_tokens"]) == (6, 600, 60)
    assert (manifest["loss_first"], manifest["loss_last"], manifest["rows_in"]) == (5.0, 2.0, 96)
    assert (
        "sft: 1 node x 1 CPU x 2 sequences x 2 accumulation = 4 sequences, 256 tokens a step; 6 steps"
        in capsys.readouterr().out
    )


def test_a_damaged_input_ends_the_run_and_sets_aside_what_was_trained_on_it(
    tmp_path, model_manifest, sft_rows, template, monkeypatch, capsys
):
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template)
    damage = SimpleNamespace(problem="tokens.arrow: was changed after it was written", wait=lambda: None)
    monkeypatch.setattr(launcher.inputs, "Beside", lambda files: damage)

    def train(*_, abandoned, **__):
        checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        mark_complete(checkpoint, 2)
        assert abandoned() == "an input is damaged; the ranks end"
        return Ended(0, 1)

    monkeypatch.setattr(launcher, "run_together", train)
    with pytest.raises(UserError, match=r"^tokens.arrow: was changed after it was written$"):
        launcher.run(task)
    (aside,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert aside.name.startswith("set-aside-checkpoint-2-")
    assert (
        "checkpoint-2: an input of its training was damaged; was complete once and is kept as"
        in capsys.readouterr().out
    )


def test_ranks_that_end_early_leave_no_manifest(tmp_path, model_manifest, sft_rows, template, monkeypatch):
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template)
    monkeypatch.setattr(launcher, "run_together", lambda *_, **__: Ended())
    with pytest.raises(UserError, match="before their work was complete; run it again"):
        launcher.run(task)
    assert not task.output.exists()


def test_only_a_debug_run_that_asks_for_it_is_wiped(tmp_path, model_manifest, sft_rows, template):
    directory = tmp_path / "run"
    kept = directory / "checkpoints" / "checkpoint-2"
    kept.mkdir(parents=True)
    plain = train_task(directory, model_manifest, sft_rows, template)
    launcher.discard_debug_run(plain, view_of(template))
    assert kept.is_dir()
    debug = {"debug__enabled": True, "debug__override_existing": True}
    wiped = train_task(directory, model_manifest, sft_rows, template, **debug)
    wiped.runtime["override"] = "one call of snakemake"
    launcher.discard_debug_run(wiped, view_of(template, **debug))
    assert not kept.exists()
    kept.mkdir(parents=True)
    launcher.discard_debug_run(wiped, view_of(template, **debug))  # requeued within the same call
    assert kept.is_dir()
    wiped.runtime["override"] = "the next call"
    launcher.discard_debug_run(wiped, view_of(template, **debug))
    assert not kept.exists()
