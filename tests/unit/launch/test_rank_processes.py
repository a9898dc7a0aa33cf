"""Real processes: what the launcher does with ranks that end, hang, or are told to stop."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from post_training.launch.processes import Ended, run_together
from post_training.run_dir.lock import LockedError, take
from post_training.run_dir.parent import snakemake_is_gone
from post_training.run_dir.stop import SIGNALS, StopRequest


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def run(*bodies: str, request: StopRequest | None = None, **options) -> Ended:
    return run_together(
        [python(body) for body in bodies], [dict(os.environ)] * len(bodies), request or StopRequest(), **options
    )


def test_a_failed_rank_ends_the_others_within_seconds_even_if_they_hang(capfd):
    hangs = "import signal, time\nfor n in (2, 10, 15): signal.signal(n, signal.SIG_IGN)\ntime.sleep(60)"
    fails = "import sys; print('bad row', file=sys.stderr); sys.exit(7)"
    begun = time.monotonic()
    assert run(hangs, fails) == Ended(1, 7)
    assert time.monotonic() - begun < 4
    assert capfd.readouterr().err == "[rank 1] bad row\n"


def test_a_killed_rank_is_told_by_its_signal():
    assert run("import os; os.kill(os.getpid(), 9)") == Ended(0, -9)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_ranks_that_are_still_starting(number):
    """It is sent before Python runs in them, and neither kills a rank nor gets lost."""
    body = (
        "import time\nfrom post_training.run_dir.stop import REQUEST\nREQUEST.listen()\n"
        "deadline = time.monotonic() + 20\n"
        "while not REQUEST.wanted and time.monotonic() < deadline: time.sleep(0.01)\n"
        f"raise SystemExit(0 if REQUEST.wanted == {int(number)} else 3)"
    )
    request, asked = StopRequest(), []
    request.received.append(number)
    assert run(body, body, request=request, asked=lambda: asked.append(1)) == Ended()
    assert asked == [1]


def test_signals_to_this_process_are_passed_on_once_each():
    body = "import signal, sys, time\nsignal.signal(10, lambda *_: sys.exit(0))\nsignal.pthread_sigmask(1, [10])\ntime.sleep(60)"
    with StopRequest() as request:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert run(body, request=request) == Ended()
        assert request.wanted == signal.SIGUSR1
    assert all(signal.getsignal(number) != request._receive for number in SIGNALS)


def test_an_abandoned_group_is_killed_at_once(capfd):
    begun = time.monotonic()
    assert run("import time; time.sleep(60)", abandoned=lambda: "somebody else has it") == Ended(0, 1)
    assert time.monotonic() - begun < 3
    assert capfd.readouterr().err == "somebody else has it\n"


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    """A Ctrl-C on `launch | tee` ends tee first."""
    done = tmp_path / "done"
    rank = f"import time\nfor n in range(20): print(n, flush=True); time.sleep(0.02)\nopen({str(done)!r}, 'w').close()"
    launcher = (
        "import os, sys\nfrom post_training.launch.processes import run_together\nfrom post_training.run_dir.stop import StopRequest\n"
        f"ended = run_together([[sys.executable, '-c', {rank!r}]], [dict(os.environ)], StopRequest())\n"
        "print('after', flush=True)\nsys.exit(0 if ended.first is None else 1)"
    )
    process = subprocess.Popen(python(launcher), stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=20) == 0
    assert done.exists()


def test_a_rank_dies_with_its_launcher():
    body = (
        "import os, time\nfrom post_training.run_dir.stop import die_with_parent\n"
        "die_with_parent(int(os.environ['LAUNCHER']))\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    )
    launcher = subprocess.Popen(
        python(
            "import os, subprocess, sys\nos.environ['LAUNCHER'] = str(os.getpid())\n"
            f"subprocess.run([sys.executable, '-c', {body!r}])"
        ),
        stdout=subprocess.PIPE,
    )
    rank = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(rank):
        time.sleep(0.05)
    assert not _runs(rank)


def test_a_snakemake_that_is_killed_is_noticed(tmp_path, monkeypatch):
    assert snakemake_is_gone() is None  # not started by one
    script = tmp_path / "snakemake"
    script.write_text("print('ready', flush=True)\nimport time\ntime.sleep(60)\n")
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    process.stdout.readline()
    monkeypatch.setenv("POST_TRAINING_SNAKEMAKE", str(process.pid))
    assert snakemake_is_gone() is None
    process.kill()
    while _runs(process.pid):
        time.sleep(0.02)
    assert (
        snakemake_is_gone() == f"snakemake (process {process.pid}), which started this run, is gone"
    )  # also as a zombie
    process.wait()
    assert snakemake_is_gone()
    with pytest.raises(LockedError, match="is gone; nothing is done"):
        take(tmp_path / "run", give_up=snakemake_is_gone)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
