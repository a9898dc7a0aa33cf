"""The reference stage through the launcher: several ranks, a kill in the middle, ZeRO-3."""

import json
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from tiny import launcher_command, losses_of, reference_task, train_here, train_task

from post_training.core import manifest
from post_training.core.fingerprint import file_sha256
from post_training.launch import launcher
from post_training.methods.dpo.reference import FILE, missing_shards

pytestmark = pytest.mark.slow


def logps(task):
    return np.load(task.directory / FILE)


def test_killed_on_two_ranks_and_finished_on_one(tmp_path, model_manifest, dpo_rows, dpo_reference, template):
    """SIGKILL of the launcher, ranks and all, while shards are being written; then the same command on one rank."""
    task = reference_task(tmp_path / "stage", model_manifest, dpo_rows, template, accelerate__num_processes=2)
    process = subprocess.Popen(launcher_command(task), start_new_session=True)
    deadline = time.monotonic() + 120
    while not (done := list((task.directory / "shards").glob("*.npy"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # the kernel ends the ranks
    assert not task.output.exists()
    left = missing_shards(task.directory, 64)
    before = {path: path.stat().st_mtime_ns for path in done}
    again = reference_task(tmp_path / "stage", model_manifest, dpo_rows, template)
    printed = subprocess.run(launcher_command(again), check=True, capture_output=True, text=True).stdout
    if left:
        assert f"{64 - sum(stop - start for start, stop in left)} of them done before" in printed
    assert before and logps(again) == pytest.approx(np.load(dpo_reference.parent / FILE), abs=1e-5)
    assert not (task.directory / "shards").exists()


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("ninja")), reason="DeepSpeed compiles with g++ and ninja")
def test_under_zero_3_stored_losses_are_the_online_losses(tmp_path, model_manifest, dpo_rows, dpo_reference, template):
    """On two ranks, whose shards of the model gather in step although a rank has fewer pairs left than the other."""
    short = {"training__max_steps": 4, "checkpointing__save_steps": 4}
    zero = {"deepspeed__config": {"zero_optimization": {"stage": 3}}, "accelerate__num_processes": 2, **short}
    reference = reference_task(tmp_path / "stage", model_manifest, dpo_rows, template, **zero)
    # One shard is there already: seven are left for two ranks.
    first = reference.directory / "shards" / "logps-00000000-00000008.npy"
    first.parent.mkdir(parents=True)
    np.save(first, np.load(dpo_reference.parent / FILE)[:8])
    assert launcher.run(reference) == 0
    assert logps(reference) == pytest.approx(np.load(dpo_reference.parent / FILE), abs=1e-5)
    stored = train_task(tmp_path / "stored", model_manifest, dpo_rows, template, "dpo", reference.output, **zero)
    online = train_task(tmp_path / "online", model_manifest, dpo_rows, template, "dpo", **short)
    assert launcher.run(stored) == 0
    train_here(online)
    assert losses_of(stored.directory) == pytest.approx(losses_of(online.directory), abs=1e-5)
    assert losses_of(stored.directory)[0] == pytest.approx(0.693147, abs=1e-4)


def test_a_wrong_reference_is_one_line_of_a_failed_run(tmp_path, model_manifest, dpo_rows, dpo_reference, template):
    wrong = tmp_path / "wrong"
    shutil.copytree(dpo_reference.parent, wrong)
    np.save(wrong / FILE, np.load(wrong / FILE)[::-1])
    found = json.loads((wrong / "manifest.json").read_text())
    found["files"][0]["sha256"] = file_sha256(wrong / FILE)
    found["checksum"] = manifest.checksum(found)
    (wrong / "manifest.json").write_text(manifest.text(found))
    run = train_task(tmp_path / "run", model_manifest, dpo_rows, template, "dpo", wrong / "manifest.json")
    done = subprocess.run(launcher_command(run), capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{wrong / 'manifest.json'}: the policy has taken no step" in done.stderr
