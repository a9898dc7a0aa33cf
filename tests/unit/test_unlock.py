"""Only a lock whose holder is certainly gone is taken away."""

import json
import os
import socket
import subprocess
import sys

import psutil
import pytest

from post_training.workflow.unlock import release_stale_lock


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "0.output.lock").write_text("x\n")
    return tmp_path


def held_by(folder, host, pid, started):
    (folder / "post-training-main.json").write_text(json.dumps({"host": host, "pid": pid, "started": started}))


def locked(folder):
    return bool(list((folder / "locks").iterdir()))


def test_a_dead_holders_lock_is_released(folder, capsys):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held_by(folder, socket.gethostname(), process.pid, psutil.Process(process.pid).create_time())
    release_stale_lock(folder)
    assert locked(folder)
    process.kill()
    process.wait()
    release_stale_lock(folder)
    assert not locked(folder)
    assert f"process {process.pid}" in capsys.readouterr().err
    assert json.loads((folder / "post-training-main.json").read_text())["pid"] == os.getpid()


def test_a_reused_process_id_is_not_the_holder(folder):
    held_by(folder, socket.gethostname(), os.getpid(), 1.0)
    release_stale_lock(folder)
    assert not locked(folder)


def test_a_lock_from_elsewhere_or_of_nobody_known_is_left(folder):
    release_stale_lock(folder)
    assert locked(folder)
    held_by(folder, "another-login-node", 1, 1.0)
    release_stale_lock(folder)
    assert locked(folder)
