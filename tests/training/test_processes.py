"""Whole runs through the launcher, in processes of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import export_task, launcher_command, losses_of, metrics_of, train_task

from post_training.core.errors import UserError
from post_training.launch import launcher
from post_training.release import export
from post_training.report.curves import marks
from post_training.report.elapsed import elapsed

pytestmark = pytest.mark.slow


def weights(run, step=6):
    return (run / "checkpoints" / f"checkpoint-{step}" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def straight(tmp_path_factory, model_manifest, sft_rows, template):
    """An uninterrupted run of one process."""
    task = train_task(tmp_path_factory.mktemp("straight") / "run", model_manifest, sft_rows, template)
    assert launcher.run(task) == 0
    return task.directory


def test_two_processes_train_like_one(tmp_path, straight, model_manifest, sft_rows, template, capfd):
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template, accelerate__num_processes=2)
    assert launcher.run(task) == 0
    assert losses_of(task.directory) == pytest.approx(losses_of(straight), abs=2e-5)
    manifest, one = json.loads(task.output.read_text()), json.loads((straight / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["tokens"], manifest["trained_tokens"]) == (
        2,
        one["tokens"],
        one["trained_tokens"],
    )
    printed = capfd.readouterr().out
    assert "sft: 1 node x 2 CPUs x 2 sequences x 1 accumulation = 4 sequences, 256 tokens a step; 6 steps" in printed
    assert printed.count("step 6/6") == 1


def test_a_killed_run_ends_with_the_same_weights(tmp_path, straight, model_manifest, sft_rows, template):
    """SIGKILL of the launcher, ranks and all; then the same command again. At random moments: tests/faults."""
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template, checkpointing__save_steps=1)
    wait_for = 2
    process = subprocess.Popen(launcher_command(task), start_new_session=True)
    deadline = time.monotonic() + 60
    while len(metrics_of(task.directory) if (task.directory / "logs" / "metrics.jsonl").exists() else []) < wait_for:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # the kernel ends the rank
    subprocess.run(launcher_command(task), check=True)
    assert weights(task.directory) == weights(straight)
    assert [line["step"] for line in metrics_of(task.directory)] == [1, 2, 3, 4, 5, 6]
    assert losses_of(task.directory) == losses_of(straight)
    starts = elapsed(task.directory)["starts"]
    killed, last = starts
    assert (killed["why"], last["why"]) == ("killed", "done")
    assert last["step"] >= wait_for - 1 and last["end_step"] == 6
    assert killed["lost_steps"] >= 0 and killed["start_up_seconds"] > 0 < last["start_up_seconds"]
    assert [mark["step"] for mark in marks(metrics_of(task.directory), starts)] == [last["step"]]


def test_a_configuration_error_in_a_rank_is_one_line(tmp_path, model_manifest, sft_rows, template):
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template, training__trainer_args={"adam_bta2": 0.9})
    done = subprocess.run(launcher_command(task), capture_output=True, text=True)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "config error" in line] == [
        "config error: training.trainer_args.adam_bta2: no argument of SFTConfig. Did you mean 'adam_beta2'?"
    ]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("ninja")), reason="DeepSpeed compiles with g++ and ninja")
@pytest.mark.parametrize(
    ("file", "ranks", "inline"),
    [
        ("zero2", 1, {}),
        ("config/deepspeed/zero3.yaml", 2, {}),
        # With DeepSpeed's own Adam for offloading a compiler would be busy for more than a minute.
        ("zero3_offload", 1, {"zero_force_ds_cpu_optimizer": False}),
    ],
)
def test_zero_trains_the_same_and_its_checkpoint_exports(
    tmp_path, straight, model_manifest, sft_rows, template, file, ranks, inline
):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from safetensors.torch import load_file

    zero = {
        "deepspeed__config_path": file,
        "deepspeed__config": inline,
        "checkpointing__inference_checkpoint_steps": 3,
        "accelerate__num_processes": ranks,
    }
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template, **zero)
    assert launcher.run(task) == 0
    assert losses_of(task.directory) == pytest.approx(losses_of(straight), abs=2e-5)
    # DeepSpeed's own way from shards to weights is the oracle for what was gathered while training.
    shards = get_fp32_state_dict_from_zero_checkpoint(str(task.directory / "checkpoints" / "checkpoint-6"))
    gathered = load_file(task.directory / "inference_checkpoints" / "step-6" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in gathered.items()} == {name: t.shape for name, t in shards.items()}
    assert all(bool((gathered[name] == shards[name]).all()) for name in shards)
    output = task.directory / "model" / "manifest.json"
    export.run(export_task(task.output, sft_rows, output))
    assert json.loads(output.read_text())["checks"]["tensors"] > 0
    # A checkpoint that has only shards is not exported.
    checkpoint = task.directory / "checkpoints" / "checkpoint-6"
    (checkpoint / "model.safetensors").unlink()
    settings = {"dtype": "float32", "trust_remote_code": False}
    with pytest.raises(UserError, match=r"shards and no weights; `python .*zero_to_fp32\.py"):
        export.load_trained(checkpoint, checkpoint, settings, [], "sft")


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def test_by_hand_also_below_accelerate(tmp_path, exported, template):
    """One command from YAML to a trained run; a second one has nothing to do."""
    pytest.importorskip("post_training.data.mix")
    rows = tmp_path / "rows.jsonl"
    asked = [{"role": "user", "content": "1 and 1?"}, {"role": "assistant", "content": "2"}]
    rows.write_text((json.dumps({"messages": asked}) + "\n") * 40)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
run_name: mine
offline: true
model: {{name_or_path: {exported.parent}, dtype: float32}}
data: {{chat_template: chatml, datasets: [{{path: {rows}}}]}}
training: {{max_steps: 4, effective_batch_size: 2}}
logging: {{report_to: [none], logging_steps: 1}}
checkpointing: {{save_steps: 2}}
paths: {{output_base: {tmp_path / "out"}}}
sft: {{max_seq_length: 64}}
"""
    )
    command = ["-m", "post_training", "train", "--config", str(config), "training.max_steps=2"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "2 steps" in done.stdout
    assert len(metrics_of(tmp_path / "out" / "mine")) == 2
    again = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment())
    assert "nothing to do" in again.stdout
    # Another length is another run beside the first.
    accelerate = Path(sys.executable).with_name("accelerate")
    other = [accelerate, "launch", "--cpu", "--num_processes", "1", "--mixed_precision", "no", *command[:-1]]
    done = subprocess.run(other, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert len(metrics_of(tmp_path / "out" / "mine")) == 4
