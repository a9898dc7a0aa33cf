"""Whatever happens to the jobs, the run ends by itself with the weights of a run that nothing happened to."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from pipelines import slurm, until

pytestmark = pytest.mark.slow


def warn(job: str) -> None:
    """What Slurm does before the time limit when it is asked with --signal=USR1: every process of every step gets it."""
    slurm("scancel", "--signal=USR1", job)


def test_an_undisturbed_run_leaves_its_record(undisturbed):
    undisturbed = undisturbed[2]
    run = undisturbed.run_of()
    (attempt,) = undisturbed.attempts()
    job = attempt["job_id"]
    assert (attempt["why"], attempt["steps"], attempt["new_steps"], attempt["nodes"][:4]) == ("done", 24, 24, "node")
    assert attempt["start"] < attempt["end"]
    names = {path.name for path in (run / "slurm").iterdir() if not path.name.startswith(".")}
    assert names == {"job.sh", "attempts.jsonl", f"slurm-{job}.out", f"slurm-{job}.err"}
    assert "sft: 1 node x 2 CPUs" in (run / "slurm" / f"slurm-{job}.out").read_text()
    assert undisturbed.failure_count() == 0
    assert json.loads((run / "manifest.json").read_text())["world_size"] == 2


def test_wall_time_requeues_under_the_same_id_and_is_no_failure(make, undisturbed):
    project = make()
    main = project.start()
    for step in (5, 12):
        warn(project.job_at_step(step))
        until(lambda: not project.ranks(), "the ranks to stop")
    main.ends(0)
    assert project.whys() == ["wall time", "wall time", "done"]
    assert len(project.jobs()) == 1
    assert project.failure_count() == 0
    assert [line["restart"] for line in project.attempts()] == [0, 1, 2]
    (out,) = (project.run_of() / "slurm").glob("*.out")
    assert out.read_text().count("post-training: attempt") == 3  # appended
    assert project.weights() == undisturbed[2].weights()


def test_where_requeueing_is_forbidden_a_new_job_goes_on(make, undisturbed):
    project = make(slurm__requeue=False, slurm__gpus_per_node=1)
    main = project.start()
    warn(project.job_at_step(6))
    assert "resumes in a new job" in main.ends(0)
    assert project.whys() == ["wall time", "done"]
    assert len(project.jobs()) == 2
    assert project.failure_count() == 0
    assert project.weights() == undisturbed[1].weights()


def test_a_dead_rank_is_a_failure_and_its_run_goes_on(make, undisturbed):
    project = make()
    main = project.start()
    project.job_at_step(6)
    os.kill(project.ranks()[-1], signal.SIGKILL)
    assert "failure 1 of 3 allowed" in main.ends(0)
    assert project.whys()[1:] == ["done"] and project.whys()[0].startswith("failed: exit code")
    assert len(project.jobs()) == 2
    assert project.failure_count() == 1
    assert project.weights() == undisturbed[2].weights()


def test_a_job_that_dies_without_a_word_is_a_failure(make, undisturbed):
    """The whole batch script killed, as by the kernel for want of memory: nobody is left to record it."""
    project = make(slurm__gpus_per_node=1)
    main = project.start()
    project.job_at_step(6)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().split(b"\0") if path.exists() else []
        if b"post_training.slurm.attempt" in words and any(str(project.path).encode() in word for word in words):
            os.kill(int(path.parent.name), signal.SIGKILL)
    main.ends(0)
    assert project.whys() == ["lost: ended without a record (killed, or its node failed)", "done"]
    assert project.failure_count() == 1
    assert project.weights() == undisturbed[1].weights()


def test_failures_end_at_the_limit_with_the_first_error_and_a_new_call_goes_on(make, undisturbed):
    project = make(slurm__max_failures=1)
    faults = project.path / "faults"
    faults.mkdir()
    # Every rank imports it: progress first, then the same crash each time.
    (faults / "sitecustomize.py").write_text(
        "import os, sys, threading, time, pathlib\n"
        "def crash():\n"
        "    task = pathlib.Path(sys.argv[-1])\n"
        "    folder = task.parents[1] / task.stem / 'logs'\n"
        "    start = time.time()\n"
        "    metrics = folder / 'metrics.jsonl'\n"
        "    while not (metrics.exists() and metrics.stat().st_mtime > start and metrics.read_text().count('step') > CRASH_AFTER):\n"
        "        time.sleep(.05)\n"
        "    print('RuntimeError: the disk of this node is broken', file=sys.stderr, flush=True)\n"
        "    os._exit(7)\n"
        "CRASH_AFTER = 6\n"
        "if 'post_training.commands.rank' in ' '.join(sys.orig_argv) and os.environ.get('RANK') == '1':\n"
        "    threading.Thread(target=crash, daemon=True).start()\n"
    )
    path = f"{faults}:{Path(__file__).parents[2] / 'src'}"
    said = project.start(project.target(), PYTHONPATH=path).ends(1)
    assert project.failure_count() == 2
    assert len(project.jobs()) == 2
    assert "2 failures, slurm.max_failures is 1; not submitted again" in said
    assert "the disk of this node is broken" in said
    steps = [line["steps"] for line in project.attempts()]
    assert steps[0] > 0, "progress in between takes no failure away"
    assert not (project.run_of() / "manifest.json").exists()
    said = project.start().ends(0)
    assert "had ended after 2 failures; this call tries again, counting from 0" in said
    assert project.weights() == undisturbed[2].weights()


def test_scancel_is_the_users_word(make, undisturbed):
    project = make(slurm__gpus_per_node=1)
    main = project.start(project.target(), "--retries", "3")
    job = project.job_at_step(6)
    begun = time.monotonic()
    slurm("scancel", job)
    said = main.ends(1)
    assert time.monotonic() - begun < 25
    assert f"Slurm job {job} was cancelled with scancel" in said
    assert project.jobs() == [job]
    assert project.failure_count() == 0
    assert str(project.path) not in slurm("squeue", "-h", "-o", "%o")
    project.start().ends(0)
    assert project.weights() == undisturbed[1].weights()


def test_scancel_while_it_saves_for_its_time_limit_is_not_undone_by_the_requeue(make):
    project = make(slurm__gpus_per_node=1)
    main = project.start()
    job = project.job_at_step(6)
    warn(job)
    slurm("scancel", job)
    said = main.ends(1)
    assert f"Slurm job {job} was cancelled with scancel" in said
    assert project.jobs() == [job]
    assert str(project.path) not in slurm("squeue", "-h", "-o", "%o")


def test_a_killed_main_process_leaves_a_job_that_the_next_call_finds(make, undisturbed):
    project = make(slurm__gpus_per_node=1)
    main = project.start()
    job = project.job_at_step(5)
    main.kill()
    again = project.start()
    until(lambda: f"waiting for its Slurm job {job}" in again.said, "the new call to find the job")
    again.ends(0)
    assert project.jobs() == [job]
    assert project.whys() == ["done"]
    assert project.weights() == undisturbed[1].weights()


def test_an_orphan_is_requeued_and_does_its_work(make, undisturbed):
    project = make(slurm__gpus_per_node=1)
    main = project.start()
    job = project.job_at_step(5)
    main.kill()
    warn(job)
    until(lambda: project.whys()[-1:] == ["done"], "the orphan to finish")
    assert project.jobs() == [job]
    assert project.whys() == ["wall time", "done"]
    project.start().ends(0)
    assert project.jobs() == [job], "a whole run is not trained again"
    assert project.weights() == undisturbed[1].weights()


def test_ctrl_c_cancels_and_leaves_everything_resumable(make, undisturbed):
    project = make(slurm__gpus_per_node=1)
    main = project.start()
    job = project.job_at_step(6)
    main.process.send_signal(signal.SIGINT)
    main.process.wait(60)
    until(lambda: str(project.path) not in slurm("squeue", "-h", "-o", "%o"), "an empty queue", 60)
    assert not (project.run_of() / "manifest.json").exists()
    project.start().ends(0)
    assert project.jobs()[0] == job and len(project.jobs()) == 2
    assert project.failure_count() == 0
    assert project.weights() == undisturbed[1].weights()


def test_job_sh_goes_on_by_hand(make, undisturbed):
    project = make(slurm__gpus_per_node=1)
    main = project.start()
    slurm("scancel", project.job_at_step(4))
    main.ends(1)
    script = project.run_of() / "slurm" / "job.sh"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(["sbatch", "--parsable", script], capture_output=True, text=True, cwd="/", env=environment)
    until(lambda: project.whys()[-1:] == ["done"], "the job by hand")
    assert project.jobs()[-1] == done.stdout.strip()
    project.start().ends(0)
    assert project.weights() == undisturbed[1].weights()
