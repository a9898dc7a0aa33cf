"""Slurm itself is away, or nodes are: nothing is submitted twice, and nothing is lost. Every job of the cluster would notice."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipelines import slurm, until

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def controller() -> int:
    """Process id of slurmctld."""
    return int((Path(os.environ["CL_DIR"]) / "run" / "slurmctld.pid").read_text())


def stand_still(seconds: float) -> None:
    """Nothing is answered, and what was asked meanwhile is done afterwards, when whoever asked has given up."""
    pid = controller()
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def restart(seconds: float) -> None:
    """Every connection is refused, and the controller begins anew with what it had saved."""
    pid = controller()
    os.kill(pid, signal.SIGKILL)
    until(
        lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2], "its end"
    )
    time.sleep(seconds)
    subprocess.run(["slurmctld"], check=True)
    until(lambda: "UP" in slurm("scontrol", "ping"), "the controller")


def waiting(program: str, script: str, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A program of Slurm's with some lines of shell before it: the folder that they make when they wait, and the environment."""
    called, wrapper = tmp_path / "called", tmp_path / "bin" / program
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\n{script.format(called=called)}\nexec {shutil.which(program)} "$@"\n')
    wrapper.chmod(0o755)
    return called, {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("outage", "seconds"),
    [
        (stand_still, 30),
        pytest.param(restart, 90, marks=pytest.mark.skipif("not os.environ.get('LONG')", reason="LONG=1")),
    ],
)
def test_an_outage_at_sbatch_is_waited_for_and_gives_one_job(make, undisturbed, outage, seconds, tmp_path):
    project = make(slurm__gpus_per_node=1)
    # Waits until the controller is away, at the first submission of all; `--test-only` comes before.
    script = 'case "$*" in *--parsable*) if mkdir {called} 2>/dev/null; then sleep 1; fi;; esac'
    called, environment = waiting("sbatch", script, tmp_path)
    main = project.start(**environment)
    until(called.exists, "the submission")
    away = threading.Thread(target=outage, args=(seconds,))
    away.start()
    said = main.ends(0)
    away.join()
    assert "Slurm does not answer (sbatch: " in said
    assert len(project.jobs()) == len(list((project.run_of() / "slurm").glob("slurm-*.out"))) == 1
    everything = slurm("squeue", "--states=all", "--noheader", "--format=%A|%o")
    assert len([line for line in everything.splitlines() if str(project.path) in line]) == 1
    assert project.whys() == ["done"] and project.failure_count() == 0
    assert project.weights() == undisturbed[1].weights()


@pytest.mark.skipif("not os.environ.get('LONG')", reason="LONG=1")
def test_an_outage_at_srun_is_waited_for_and_counts_as_no_failure(make, undisturbed, tmp_path):
    project = make(slurm__gpus_per_node=1)
    called, environment = waiting("srun", "if mkdir {called} 2>/dev/null; then sleep 15; fi", tmp_path)
    main = project.start(**environment)
    until(called.exists, "the start of the ranks")
    time.sleep(10)  # the controller has written down that the job runs
    restart(120)
    main.ends(0)
    assert "Slurm does not answer (squeue: " in next((project.run_of() / "slurm").glob("slurm-*.err")).read_text()
    assert project.whys() == ["done"] and project.failure_count() == 0
    assert project.weights() == undisturbed[1].weights()


def test_a_job_that_nodes_cannot_start_is_released_then_given_up(make, undisturbed, failing_prolog):
    """Slurm drains a node whose prolog fails, and holds the job for ever."""
    project = make(slurm__gpus_per_node=1, slurm__max_failures=1)
    failing_prolog.touch()
    said = project.start().ends(1)
    assert "released (failure 1 of 1 allowed)" in said
    assert "2 failures, slurm.max_failures is 1; not submitted again" in said
    assert not project.jobs()
    failing_prolog.unlink()
    project.start().ends(0)
    assert project.whys() == ["done"] and project.weights() == undisturbed[1].weights()


def test_a_lost_node_and_its_ranks_that_live_on(make, undisturbed):
    """slurmd of the first node killed: Slurm starts the job elsewhere, while its old ranks still run."""
    project = make()
    main = project.start()
    job = project.job_at_step(5)
    node = json.loads((project.run_of() / "slurm" / "attempt.json").read_text())["host"]
    pid = next(
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists() and path.read_bytes().split(b"\0")[:3] == [b"slurmd", b"-N", node.encode()]
    )
    old = set(project.ranks())
    try:
        os.kill(pid, signal.SIGKILL)
        slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        until(lambda: not old & set(project.ranks()), "the ranks of the lost node to end")
        main.ends(0)
    finally:
        slurm("unshare", "--uts", "sh", "-c", f"hostname {node}; exec slurmd -N {node}")
        slurm("scontrol", "update", f"nodename={node}", "state=resume")
    assert project.jobs() == [job]
    # "lost" when Slurm had nobody left to tell.
    assert project.whys()[0].startswith(("lost", "failed")) and project.whys()[-1] == "done"
    assert project.failure_count() == 1
    assert project.attempts()[-1]["host"] != node
    assert project.weights() == undisturbed[2].weights()


@pytest.fixture
def failing_prolog() -> Iterator[Path]:
    """A file; while it is there no node can start a job."""
    folder = Path(os.environ["CL_DIR"])
    configuration, flag, prolog = folder / "etc" / "slurm.conf", folder / "no-job-starts", folder / "prolog.sh"
    prolog.write_text(f"#!/bin/sh\n[ ! -e {flag} ]\n")
    prolog.chmod(0o755)
    before = configuration.read_text()
    configuration.write_text(f"{before}\nProlog={prolog}\n")
    slurm("scontrol", "reconfigure")
    until(lambda: str(prolog) in slurm("scontrol", "show", "config"), "the prolog")
    yield flag
    flag.unlink(missing_ok=True)
    configuration.write_text(before)
    slurm("scontrol", "reconfigure")
    for node in slurm("sinfo", "--noheader", "--Node", "--states=drain", "--format=%N").split():
        slurm("scontrol", "update", f"nodename={node}", "state=resume")
