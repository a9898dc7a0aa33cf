"""Only a lock whose holder is certainly gone is removed."""

import subprocess
import sys

import pytest

from post_training.run_dir import lock
from post_training.workflow.unlock import release_stale_lock


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "0.output.lock").write_text("x\n")
    return tmp_path


def locked(folder):
    return bool(list((folder / "locks").iterdir()))


def started(folder, then):
    """A call in a process of its own, which removes no lock that is not stale and is recorded where there is none."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom post_training.workflow.unlock import release_stale_lock\n"
        f"release_stale_lock(Path(sys.argv[1]))\nprint('started', flush=True)\n{then}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    return process


def test_a_dead_holders_lock_is_released(folder, capsys):
    (held,) = (folder / "locks").iterdir()
    held.unlink()
    process = started(folder, "input()")
    held.write_text("x\n")
    release_stale_lock(folder)
    assert locked(folder)
    process.kill()
    process.wait()
    release_stale_lock(folder)
    assert not locked(folder)
    said = capsys.readouterr()
    assert f"process {process.pid}) of an earlier call is gone" in said.err and not said.out
    assert lock.live_owner(folder) is not None


def test_a_lock_of_a_call_that_ended_in_order_or_of_nobody_known_is_left(folder):
    release_stale_lock(folder)
    assert locked(folder) and lock.last_owner(folder) is None
    (held,) = (folder / "locks").iterdir()
    held.unlink()
    started(folder, "").wait()
    assert lock.last_owner(folder).released
    held.write_text("x\n")
    release_stale_lock(folder)
    assert locked(folder)


def test_a_holder_on_another_machine_is_left_while_its_file_is_touched(folder):
    (folder / "owner.1.json").write_text(
        '{"host": "another-login-node", "pid": 1, "process": "other boot 1", "slurm_job_id": null, "since": "then"}'
    )
    release_stale_lock(folder)
    assert locked(folder)
