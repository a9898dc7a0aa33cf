"""Whole pipelines on several nodes, and pipelines beside each other."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess

import pytest
from pipelines import ROOT, Project, configuration, slurm, until

from post_training.config import resolve_runs
from post_training.plan import make_graph
from post_training.report.elapsed import elapsed

pytestmark = pytest.mark.slow

DPO = {
    "method": "dpo",
    "slurm__num_nodes": 2,
    "slurm__gpus_per_node": 1,
    "slurm__mem": "6G",  # two compilers beside two ranks
    "deepspeed__config": {"zero_optimization": {"stage": 3}},
    "training__max_steps": 16,
    "training__effective_batch_size": 8,
    "dpo": {
        "max_seq_length": 64,
        "training": {"max_steps": 12, "effective_batch_size": 8, "learning_rate": 1e-4},
        "data": {
            "datasets": [{"name": "preferences", "path": "demo/preference_train.jsonl", "transform": "preference"}]
        },
    },
}


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("ninja")), reason="DeepSpeed compiles with g++ and ninja")
def test_sft_to_dpo_on_two_nodes_with_zero_3_interrupted(make, warned, built_extension):
    """`snakemake --executor slurm all`, disturbed by wall time and by a kill, and the same left alone, side by side."""
    disturbed, alone = make("disturbed", **DPO), make("alone", **DPO)
    mains = [disturbed.start("all"), alone.start("all")]
    slurm("scancel", "--signal=USR1", disturbed.job_at_step(5, "sft"))
    until(lambda: len(disturbed.attempts("sft")) == 1, "the attempt to end")
    disturbed.job_at_step(9, "sft")
    os.kill(disturbed.ranks("sft")[-1], signal.SIGKILL)
    disturbed.job_at_step(5, "dpo")
    os.kill(disturbed.ranks("dpo")[0], signal.SIGKILL)
    for main in mains:
        main.ends(0, 600)
    assert disturbed.whys("sft")[0] == "wall time" and disturbed.whys("sft")[-1] == "done"
    assert (disturbed.failure_count("sft"), disturbed.failure_count("dpo")) == (1, 1)
    assert alone.whys("sft") == alone.whys("dpo") == ["done"]
    for method in ("sft", "dpo"):
        manifest = json.loads((disturbed.run_of(method) / "manifest.json").read_text())
        assert manifest["world_size"] == 2
        assert disturbed.model(method) == alone.model(method)
    starts = elapsed(disturbed.run_of("sft"))["starts"]
    assert [start["job_id"] for start in starts] == [line["job_id"] for line in disturbed.attempts("sft")]
    assert (starts[0]["why"], starts[-1]["why"]) == ("SIGUSR1", "done")
    assert {start["devices"] for start in starts} == {2} and all(start["queue_seconds"] >= 0 for start in starts)
    nodes = {line["nodes"] for line in alone.attempts("sft")}
    assert all("node[" in name for name in nodes)
    for project in (disturbed, alone):
        assert str(project.path) not in slurm("squeue", "-h", "-o", "%o")


def test_calls_that_share_stages_submit_each_once(make, tmp_path):
    """Runs of a sweep, each with a call of its own, over one output folder."""
    base = tmp_path / "shared"
    calls, count = [], 6
    for number in range(count):
        project = Project(
            tmp_path / f"run-{number}", configuration(paths__output_base=str(base), run_name=f"run-{number}")
        )
        shutil.copytree(ROOT / "config" / "demo", project.path / "demo")
        calls.append(project.start("data"))
    for call in calls:
        call.ends(0)
    for folder in ("models", "data/transformed", "data/tokenized", "data/mixed"):
        for stage in (base / folder).iterdir():
            assert len(list((stage / "slurm").glob("slurm-*.out"))) == 1, stage


def test_five_runs_of_a_sweep_submit_what_they_share_once(make):
    keys = {"slurm__num_nodes": 1, "slurm__gpus_per_node": 1, "deepspeed__config": {}, "training__max_steps": 2}
    short = DPO["dpo"] | {"training": DPO["dpo"]["training"] | {"max_steps": 1}}
    project = make(**DPO | keys | {"dpo": short, "sweep": {"dpo.beta": [0.01 * number for number in range(1, 6)]}})
    with contextlib.chdir(project.path):
        graph = make_graph(resolve_runs(project.config))
    targets = [f"{graph.base}/{plan.trained['dpo'].manifest}" for plan in graph.plans.values()]
    assert len(set(targets)) == 5
    project.start(*targets).ends(0, 900)
    for kind, stages in graph.stages.items():
        for stage in stages.values():
            jobs = list((project.path / graph.base / stage.directory / "slurm").glob("slurm-*.out"))
            assert len(jobs) <= 1, stage.directory
            assert jobs or kind not in ("train", "reference"), stage.directory
    assert {kind: len(graph.stages[kind]) for kind in ("reference", "mix", "train")} == {
        "reference": 1, "mix": 2, "train": 1 + 5,
    }  # fmt: skip


@pytest.mark.without_accounting
def test_a_small_run_and_a_cancelled_one(make):
    """What does not depend on accounting: the end of a job that went well, and of one that was cancelled.

    A debug run, which each call clears, on a file system like NFS: neither may delete what its own job writes.
    """
    debug = {"debug": {"enabled": True, "override_existing": True}, "paths__debug_base": "outputs"}
    project = make(slurm__gpus_per_node=1, like_nfs=True, **debug)
    # Filters of the user's shell hide no job.
    main = project.start(
        SQUEUE_PARTITION="short", SQUEUE_STATES="SUSPENDED", SQUEUE_USERS="nobody", SACCT_PARTITION="short"
    )
    job = project.job_at_step(3)
    slurm("scancel", job)
    assert f"Slurm job {job} was cancelled with scancel" in main.ends(1)
    project.start("all").ends(0)
    assert len(project.jobs()) == 2
    for folder, jobs in (("slurm", 2), ("slurm/export", 1)):
        assert len(list((project.run_of() / folder).glob("slurm-*.out"))) == jobs, folder
    assert project.failure_count() == 0
    assert json.loads((project.run_of() / "model" / "manifest.json").read_text())["stage"] == "export"


def test_jobs_run_without_a_network():
    """`make test-slurm` gives the cluster loopback and nothing else; so every test here has shown it."""
    if "POST_TRAINING_NO_NETWORK" not in os.environ:
        pytest.skip("this cluster was not started without a network")
    done = slurm("srun", "-N1", "-n1", "cat", "/proc/net/route")
    assert len(done.splitlines()) <= 1
    with pytest.raises(OSError), socket.create_connection(("192.0.2.1", 80), timeout=2):
        pass


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"partition": "nope"}, "config error: slurm.partition: found 'nope'; the cluster refuses the job"),
        (
            {"partition": "short"},
            "config error: slurm.wall_time: 30 minutes asked of partition short, which has 5 at most",
        ),
        ({"gpus_per_node": 99}, "config error: slurm.gpus_per_node: 99 GPUs a node asked of partition gpu, which has"),
        (
            {"cpus_per_gpu": 500},
            "config error: slurm.cpus_per_gpu: 1000 cores a node asked of partition gpu, which has",
        ),
        ({"mem": "9000G"}, "config error: slurm.mem: 9216000 MB a node asked of partition gpu, which has"),
        ({"num_nodes": 9}, "config error: slurm.num_nodes: 9 nodes asked of partition gpu, which has 3 such nodes"),
        ({"constraint": "h100"}, "config error: slurm.constraint: found 'h100'; the cluster refuses the job: "),
        ({"reservation": "nope"}, "config error: slurm.reservation: found 'nope'; the cluster refuses the job: "),
        (
            {"account": "nobody"},
            "config error: slurm.account: found 'nobody', which the cluster's accounting does not know",
        ),
        ({"qos": "nope"}, "config error: slurm.qos: found 'nope', which the cluster's accounting does not know"),
        ({"cpu": {"partition": "nope"}}, "config error: slurm.cpu.partition: found 'nope'"),
    ],
)
def test_what_the_cluster_would_refuse_is_not_queued(make_view, keys, expected):
    with pytest.raises(Exception, match="config error") as caught:
        make_view(**keys)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "pinned", "devices", "expected"),
    [
        ({}, "", {"0,1,2,3"}, [0, 1, 2, 3]),
        ({}, "1", {"0", "1", "2", "3"}, [0, 0, 0, 0]),  # by a prolog of the site's
        ({"gpu_bind": "single:1"}, "", {"0", "1", "2", "3"}, [0, 0, 0, 0]),  # by Slurm
        ({"env": {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}}, "1", {"0,1,2,3"}, [0, 1, 2, 3]),
    ],
)
def test_ranks_take_a_device_that_they_see(keys, pinned, devices, expected):
    from post_training.config import resolve
    from post_training.config.batch import Topology
    from post_training.slurm.srun import srun_command

    config = configuration(slurm__gpus_per_node=4, slurm__num_nodes=2)
    config["slurm"] |= keys
    rank = ["/bin/sh", "-c", 'echo "$RANK $SLURM_LOCALID $LOCAL_RANK $CUDA_VISIBLE_DEVICES"']
    words = srun_command(Topology(2, 4, "GPU"), resolve(config).views["sft"], rank)
    environment = os.environ | {"POST_TRAINING_TEST_PIN": pinned}
    done = subprocess.run([words[0], "--gres=gpu:4", *words[1:]], env=environment, capture_output=True, text=True)
    ranks = sorted([int(word) for word in line.split()[:3]] + line.split()[3:] for line in done.stdout.splitlines())
    assert [rank[0] for rank in ranks] == list(range(8)), done.stderr
    assert {rank[3] for rank in ranks} == devices
    assert [rank[2] for rank in ranks] == [expected[rank[1]] for rank in ranks]


@pytest.fixture
def make_view():
    """`make_view(key=value)`: ask the cluster about the GPU and the CPU rules of a configuration."""
    from pathlib import Path

    from post_training.config import resolve
    from post_training.slurm import check, placement
    from post_training.slurm.job import StageJob

    def function(**keys):
        config = configuration()
        config["slurm"] |= keys
        view = resolve(config).views["sft"]
        jobs = [
            StageJob(kind, view, Path("/x/manifest.json"), [], placement.resources(view, kind))
            for kind in ("train", "mix")
        ]
        return check.check_jobs(jobs)

    return function


def test_a_drained_node_is_waited_for(make_view):
    slurm("scontrol", "update", "nodename=node2", "state=drain", "reason=test")
    try:
        (warning,) = make_view(num_nodes=3)
    finally:
        slurm("scontrol", "update", "nodename=node2", "state=resume")
    assert "not enough nodes of partition gpu are up now" in warning


def test_nothing_is_queued_after_a_refusal(make):
    project = make(slurm__partition="nope")
    said = project.start("all").ends(1)
    assert "config error: slurm.partition: found 'nope'" in said
    assert not list(project.path.glob("outputs/sft-*"))


def test_a_dry_run_shows_the_line_that_is_submitted(make):
    project = make(slurm__num_nodes=2)
    said = project.start("all", "-n").ends(0)
    line = next(line for line in said.splitlines() if line.strip().startswith("sbatch --job-name=sft-"))
    assert ": 2 nodes x 2 GPUs, 00:30:00" in said
    told = subprocess.run(
        [*line.split()[:1], "--test-only", *line.split()[1:-1], "--wrap=true"], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert "--nodes=2" in line and "--gres=gpu:2" in line and "--signal=USR1@60" in line


def test_slurms_own_warning_reaches_the_ranks(warned):
    """The real one: --signal of the sbatch line."""
    warned.main.ends(1)
    assert warned.whys()[0] == "wall time"
    assert warned.attempts()[0]["new_steps"] > 0
    assert warned.failure_count() == 0
