"""A run that goes on with another number of ranks: the same rows, the same losses, never afresh."""

import json
import shutil
import subprocess

import pytest
from tiny import launcher_command, losses_of, train_task

from post_training.launch import launcher

pytestmark = pytest.mark.slow
COMPILER = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("ninja")), reason="DeepSpeed compiles with g++ and ninja"
)


@pytest.fixture
def task_on(tmp_path, model_manifest, sft_rows, template):
    def make(ranks, strategy):
        settings = {"accelerate__num_processes": ranks, "checkpointing__save_total_limit": None}
        settings["training__weight_decay"] = 0.1  # which some parameters do not get
        if strategy != "ddp":
            settings["deepspeed__config_path"] = strategy
        return train_task(tmp_path / "run", model_manifest, sft_rows, template, **settings)

    return make


def back_to(run, step) -> None:
    """As if the run had been killed right after it saved this step."""
    for later in range(step + 1, 7):
        shutil.rmtree(run / "checkpoints" / f"checkpoint-{later}", ignore_errors=True)
    (run / "manifest.json").unlink()


@pytest.mark.parametrize(
    "strategy", ["ddp", pytest.param("zero2", marks=COMPILER), pytest.param("zero3", marks=COMPILER)]
)
def test_two_ranks_then_one_then_two(task_on, tmp_path, strategy, capfd):
    task, run = task_on(2, strategy), tmp_path / "run"
    assert launcher.run(task) == 0
    losses, samples = losses_of(run), (run / "logs" / "samples.jsonl").read_text()
    assert len(samples.splitlines()) == 6
    # ZeRO-2 and ZeRO-3 go through the same conversion; up again is tested with the latter.
    for before, step, ranks in ((2, 2, 1), (1, 4, 2))[: 1 if strategy == "zero2" else 2]:
        back_to(run, step)
        assert launcher.run(task_on(ranks, strategy)) == 0
        how = "" if strategy == "ddp" else " through a universal checkpoint"
        said = f"sft: resuming from checkpoint-{step}, written by {before} rank{'s' * (before > 1)} and continued on {ranks}{how}"
        assert said in capfd.readouterr().out
        assert losses_of(run) == pytest.approx(losses, abs=2e-5)
        # Steps taken again were compared with these lines, and would have ended the run.
        assert (run / "logs" / "samples.jsonl").read_text() == samples
        assert json.loads(task.output.read_text())["world_size"] == ranks


@pytest.mark.parametrize(("before", "after"), [("ddp", "zero2"), pytest.param("zero3", "ddp", marks=COMPILER)])
def test_what_cannot_go_on_is_refused_with_the_key(task_on, tmp_path, before, after):
    task = task_on(1, before)
    assert launcher.run(task) == 0
    back_to(tmp_path / "run", 4)
    done = subprocess.run(launcher_command(task_on(1, after)), capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("config error: deepspeed.config_path: ")]
    assert "checkpoint-4 was written with" in line
    assert losses_of(tmp_path / "run")[:4]
