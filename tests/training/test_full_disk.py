"""A real file system that runs full while a run saves."""

import contextlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from projects import REPOSITORY, environment
from safetensors.torch import save_file
from tiny import LLAMA, build_task, launcher_command, losses_of, train_task

from post_training.launch import launcher
from post_training.launch.processes import Ended
from post_training.run_dir.checkpoints import checkpoints, newest_complete
from post_training.run_dir.failures import no_room, no_room_in

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs in which two checkpoints and a part of a third fit."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    with (folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    tmp_path, small_disk, model_manifest, sft_rows, template
):
    settings = {"checkpointing__save_steps": 2, "checkpointing__save_total_limit": None}
    roomy = train_task(tmp_path / "roomy", model_manifest, sft_rows, template, **settings)
    assert launcher.run(roomy) == 0
    size = sum(
        path.stat().st_size for path in (tmp_path / "roomy/checkpoints/checkpoint-6").rglob("*") if path.is_file()
    )
    (small_disk / "ballast").write_bytes(bytes((8 << 20) - int(2.5 * size) - (200 << 10)))

    task = train_task(small_disk / "run", model_manifest, sft_rows, template, **settings)
    done = subprocess.run(launcher_command(task), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if "no space left on device" in line.lower()]
    # The rank's line; and the launcher's for the console, because the rank found no room to keep its own.
    assert len(errors) == 2 and errors[1].startswith(f"{task.directory}: no space left on device"), done.stderr
    assert "checkpoint-6: cannot be written, no space left on device; the last complete checkpoint is kept" in errors[0]
    assert "Traceback" not in done.stderr
    # The part that was written is gone again.
    assert [path.name for path in checkpoints(small_disk / "run/checkpoints")] == ["checkpoint-4", "checkpoint-2"]
    assert newest_complete(small_disk / "run/checkpoints").chosen.step == 4

    (small_disk / "ballast").unlink()
    done = subprocess.run(launcher_command(task), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming from checkpoint-4" in done.stdout
    assert losses_of(task.directory) == losses_of(roomy.directory)
    weights = "checkpoints/checkpoint-6/model.safetensors"
    assert (task.directory / weights).read_bytes() == (roomy.directory / weights).read_bytes()
    assert os.listdir(small_disk) == ["run"]


def test_with_nothing_left_a_start_is_one_line_that_names_the_file(small_disk, model_manifest, sft_rows, template):
    task = train_task(small_disk / "run", model_manifest, sft_rows, template)
    command = launcher_command(task)
    fill(small_disk)
    attempt = [
        sys.executable,
        "-m",
        "post_training.slurm.attempt",
        "--output",
        str(task.output),
        "--max-failures",
        "1",
        "--",
    ]
    for words, name in ((command, "run/owner.1.json"), ([*attempt, "true"], "run/slurm/attempt.json")):
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"SLURM_JOB_ID": "7"})
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("post-training: attempt")]
        assert line.startswith(f"{small_disk}/{name}: no space left on device; free some room")


def test_a_call_of_snakemake_with_nothing_left_is_one_line(small_disk):
    shutil.copytree(REPOSITORY / "config", small_disk / "config")
    fill(small_disk)
    words = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(REPOSITORY / "Snakefile"),
        "--configfile",
        "config/config.yaml",
    ]
    done = subprocess.run(words, cwd=small_disk, capture_output=True, text=True, env=environment(REPOSITORY))
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == ".snakemake/owner.1.json: cannot be written (No space left on device); make room"
    )
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr


@pytest.mark.parametrize("write", ["python", "numpy", "arrow", "safetensors", "torch"])
def test_the_error_of_each_library_that_writes_is_recognised(small_disk, write):
    array, path = np.zeros(4 << 20), small_disk / "file"
    writers = {
        "python": lambda: path.write_bytes(array),
        "numpy": lambda: np.save(path, array),
        "arrow": lambda: pa.OSFile(str(path), "wb").write(array.tobytes()),
        "safetensors": lambda: save_file({"a": torch.from_numpy(array)}, path),
        "torch": lambda: torch.save(array, path),
    }
    with pytest.raises(Exception) as caught:
        writers[write]()
    if write == "torch":  # it says nothing of why
        assert no_room_in(small_disk) == "no space left on device"
    else:
        assert no_room(caught.value, small_disk).startswith(str(small_disk))
        assert "no space left on device" in no_room(caught.value, small_disk)


def test_a_stage_whose_library_finds_no_room_is_one_line(small_disk, corpus):
    task = build_task(
        small_disk / "model" / "manifest.json",
        corpus,
        config=LLAMA | {"hidden_size": 768, "head_dim": 96, "intermediate_size": 768},
    )
    done = subprocess.run(
        [sys.executable, "-m", "post_training", "stage", str(task.saved())], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == f"{small_disk}/model: no space left on device; free some room and start again\n"


def test_ranks_that_had_no_room_to_report_are_explained(tmp_path, model_manifest, sft_rows, template, capsys):
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template)
    launcher._report(task, Ended(0, 1), [], 1, full="no space left on device")
    assert (
        capsys.readouterr().err
        == f"{task.directory}: no space left on device; free some room and start again to resume\n"
    )


def test_with_a_private_umask_nothing_is_readable_by_others(tmp_path):
    script = "import os; os.umask(0o077)\nfrom pathlib import Path\nfrom post_training.core.fingerprint import write_atomically\n"
    script += f"write_atomically(Path({str(tmp_path)!r}) / 'a' / 'manifest.json', '')"
    subprocess.run([sys.executable, "-c", script], check=True)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "manifest.json")]
    assert modes == [0o700, 0o600]
