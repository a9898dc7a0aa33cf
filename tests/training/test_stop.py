"""Stopping on request, at every moment, and one writer: whole runs in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import launcher_command, losses_of, metrics_of, train_task, wait_for_ranks, wait_for_step

from post_training.launch import launcher
from post_training.report.elapsed import elapsed
from post_training.run_dir.checkpoints import newest_complete

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_ranks(model_manifest, sft_rows, template):
    """Makes the task of a run of 24 steps on two ranks that saves only at its end."""

    def make(directory, **changes):
        settings = {
            "accelerate__num_processes": 2,
            "checkpointing__save_steps": 100,
            "training__max_steps": 24,
        } | changes
        return train_task(directory, model_manifest, sft_rows, template, **settings)

    return make


@pytest.fixture(scope="module")
def straight(tmp_path_factory, two_ranks):
    task = two_ranks(tmp_path_factory.mktemp("straight") / "run")
    assert launcher.run(task) == 0
    return task.directory


def stopped(task) -> dict:
    return json.loads((task.directory / "stopped.json").read_text())


def start(task) -> subprocess.Popen:
    return subprocess.Popen(
        launcher_command(task), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(task, straight):
    assert subprocess.run(launcher_command(task)).returncode == 0
    assert not (task.directory / "stopped.json").exists()
    assert [line["step"] for line in metrics_of(task.directory)] == [*range(1, 25)]
    assert losses_of(task.directory) == losses_of(straight)
    weights = "checkpoints/checkpoint-24/model.safetensors"
    assert (task.directory / weights).read_bytes() == (straight / weights).read_bytes()


def test_a_signal_to_one_rank_stops_all_at_a_saved_step(tmp_path, two_ranks, straight):
    """Slurm's warning may reach one rank only; then comes the same to the launcher, twice, while it saves."""
    task = two_ranks(tmp_path / "run")
    process = start(task)
    ranks = wait_for_ranks(process.pid)
    wait_for_step(task.directory, 2)
    os.kill(ranks[1], signal.SIGUSR1)
    for _ in range(2):
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == launcher.REQUEUE == 85, output
    told = stopped(task)
    assert told["signal"] == "SIGUSR1"
    assert newest_complete(task.directory / "checkpoints").chosen.step == told["step"] < 24
    assert f"{task.directory}: stopped by SIGUSR1 after step {told['step']}; start again to resume" in output
    assert not task.output.exists()
    finish(task, straight)
    first, second = elapsed(task.directory)["starts"]
    assert (first["why"], first["end_step"], second["step"]) == ("SIGUSR1", told["step"], told["step"])
    assert first["devices"] == 2 and first["saving_seconds"] > 0 == second["lost_steps"]


def test_a_signal_while_the_model_is_loaded_is_honoured(tmp_path, two_ranks):
    task = two_ranks(tmp_path / "run")
    process = start(task)
    wait_for_ranks(process.pid)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == launcher.INTERRUPTED == 130, output
    assert stopped(task) == {"signal": "SIGINT", "step": stopped(task)["step"]}
    assert not stopped(task)["step"]


def test_a_second_start_is_refused_and_changes_nothing(tmp_path, two_ranks, straight):
    task = two_ranks(tmp_path / "run")
    first = start(task)
    wait_for_step(task.directory, 1)
    second = start(task)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == launcher.LOCKED == 75
    assert f"is in use by process {first.pid} on " in output
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert losses_of(task.directory) == losses_of(straight)
    assert task.output.exists()


def test_a_dead_rank_ends_the_run_within_seconds(tmp_path, two_ranks):
    """The other one hangs in a collective; what is shown first is the death."""
    task = two_ranks(tmp_path / "run", training__max_steps=500)
    process = start(task)
    wait_for_step(task.directory, 1)
    os.kill(wait_for_ranks(process.pid)[1], signal.SIGKILL)
    begun = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 5
    assert process.returncode == 137
    errors = [line for line in output.splitlines() if "step" not in line and "row" not in line and "sft: " not in line]
    assert errors[0] == "rank 1 was killed by SIGKILL (out of memory?)", output


def test_signals_have_handlers_before_anything_slow_is_imported():
    code = (
        "import sys\nimport post_training.commands.rank\n"
        "import signal; from post_training.run_dir.stop import REQUEST\n"
        "assert signal.getsignal(signal.SIGUSR1) == REQUEST._receive\n"
        "slow = {'torch', 'numpy', 'transformers', 'omegaconf', 'subprocess'} & set(sys.modules)\nassert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
