"""The command and the environment that srun gets."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from tiny import view_of

from post_training.config.batch import Topology, slurm_topology
from post_training.core.errors import UserError
from post_training.slurm import srun

RANK = ["/env/python", "-u", "-m", "post_training.commands.rank", "out/logs/task.json"]
SCRATCH = (
    'scratch="${TMPDIR:-/tmp}/post-training-$(id -u)"; '
    'mkdir -p -m 700 "$scratch" && [ -O "$scratch" ] || scratch=$(mktemp -d); '
    'export TRITON_CACHE_DIR="$scratch/triton" TORCHINDUCTOR_CACHE_DIR="$scratch/inductor" '
    'TORCH_EXTENSIONS_DIR="$scratch/torch_extensions"; '
)


def test_two_nodes_of_four_gpus(template):
    view = view_of(template, slurm__cpus_per_gpu=12)
    assert srun.srun_command(Topology(2, 4, "GPU"), view, RANK) == [
        "srun",
        "--nodes=2",
        "--ntasks=8",
        "--ntasks-per-node=4",
        "--cpus-per-task=12",
        "--kill-on-bad-exit=1",
        "--export=ALL",
        "bash",
        "-c",
        f"trap '' USR1 USR2; {srun._VISIBLE.format(most=4)}; export RANK=$SLURM_PROCID "
        f"LOCAL_RANK=$((SLURM_LOCALID % visible)); {SCRATCH}exec /env/python -u -m post_training.commands.rank out/logs/task.json",
    ]


def test_a_rank_alone_has_its_numbers_from_the_environment(template):
    command = srun.srun_command(Topology(1, 1, "GPU"), view_of(template), RANK)
    assert command[1:4] == ["--nodes=1", "--ntasks=1", "--ntasks-per-node=1"]
    assert "RANK=" not in command[-1]


def test_cpu_ranks_see_no_gpu_whatever_slurm_sets(template):
    command = srun.srun_command(Topology(2, 2, "CPU"), view_of(template, slurm__cpus_per_task=3), RANK)
    assert command[4] == "--cpus-per-task=3"
    assert "; export CUDA_VISIBLE_DEVICES=; " in command[-1]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "0"),  # pinned by the cluster: one device is seen, whose number is 0
        ({"CUDA_VISIBLE_DEVICES": "GPU-5f2a,GPU-77b1"}, "1"),
        ({"ROCR_VISIBLE_DEVICES": "6"}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "ROCR_VISIBLE_DEVICES": "2"}, "0"),
        ({}, "3"),
    ],
)
def test_local_rank_counts_the_devices_that_the_task_sees(template, tmp_path, variables, expected):
    rank = ["/bin/sh", "-c", "echo $RANK $LOCAL_RANK"]
    script = srun.rank_script(Topology(2, 4, "GPU"), view_of(template), rank)
    task = {"SLURM_PROCID": "7", "SLURM_LOCALID": "3", "TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", script], env={**task, **variables}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"7 {expected}\n", "")


def test_bindings_are_options_of_srun(template):
    view = view_of(template, slurm={"cpu_bind": "mask_cpu:0xfe,0xfe00", "gpu_bind": "closest"})
    command = srun.srun_command(Topology(1, 2, "GPU"), view, RANK)
    assert command[4:7] == ["--cpus-per-task=8", "--cpu-bind=mask_cpu:0xfe,0xfe00", "--gpu-bind=closest"]


def test_variables_of_the_cluster_go_over_those_of_its_prolog(template, tmp_path):
    env = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "NCCL_SOCKET_IFNAME": "hsn0,hsn1", "NOTE": "two words"}
    rank = ["/bin/sh", "-c", 'echo "$LOCAL_RANK $NCCL_SOCKET_IFNAME $NOTE"']
    script = srun.rank_script(Topology(1, 4, "GPU"), view_of(template, slurm__env=env), rank)
    task = {"SLURM_LOCALID": "2", "CUDA_VISIBLE_DEVICES": "2", "TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    assert subprocess.check_output(["bash", "-c", script], env=task, text=True) == "2 hsn0,hsn1 two words\n"


def test_inside_a_container_are_our_variables_and_not_the_hosts_packages(template, tmp_path):
    program = tmp_path / "apptainer"
    program.write_text("#!/bin/sh\nenv\n")
    program.chmod(0o755)
    view = view_of(template, slurm={"container": {"image": "/i.sif"}, "env": {"NCCL_SOCKET_IFNAME": "hsn0,hsn1"}})
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": "/host/site-packages"}
    said = subprocess.check_output(srun.container_command(view, RANK), env=environment, text=True).splitlines()
    assert "APPTAINERENV_NCCL_SOCKET_IFNAME=hsn0,hsn1" in said
    # What is compiled goes to the job's own TMPDIR, which the container sees only where it is bound.
    environment |= {"TMPDIR": str(tmp_path / "job"), "APPTAINER_BIND": "/data"}
    script = srun.rank_script(Topology(1, 1, "GPU"), view, RANK)
    ran = subprocess.check_output(["bash", "-c", script], env=environment, text=True).splitlines()
    said = dict(line.split("=", 1) for line in ran if "=" in line)
    cache = Path(said["TRITON_CACHE_DIR"])
    assert said["APPTAINER_BIND"] == f"/data,{cache.parent}" and cache.is_relative_to(tmp_path / "job")
    assert not [line for line in said if line.startswith("PYTHONPATH")]


def test_container_reaches_the_ranks_command(template, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    container = {"image": "/images/my train.sif", "bind": ["/scratch", "/data:/data:ro"], "env_file": "nccl.env"}
    view = view_of(template, slurm__container=container)
    assert srun.rank_script(Topology(1, 2, "GPU"), view, RANK).endswith(
        f"exec env --unset=PYTHONPATH apptainer exec --nv --pwd {tmp_path} --bind {tmp_path} --bind /scratch --bind /data:/data:ro "
        "--env-file nccl.env '/images/my train.sif' python -u -m post_training.commands.rank out/logs/task.json"
    )


@pytest.mark.parametrize(
    ("keys", "topology"),
    [
        ({"slurm__num_nodes": 2, "slurm__gpus_per_node": 4}, Topology(2, 4, "GPU")),
        ({"slurm__gpus_per_node": 2, "accelerate__use_cpu": True}, Topology(1, 2, "CPU")),
        ({"slurm__gpus_per_node": 0, "accelerate__num_processes": 3}, Topology(1, 3, "CPU")),
        ({"slurm__gpus_per_node": 0, "accelerate__num_processes": None}, Topology(1, 1, "CPU")),
    ],
)
def test_topology(template, keys, topology):
    assert slurm_topology(view_of(template, **keys)) == topology


def test_a_steps_environment_has_no_counts_of_the_job():
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "4",
        "SLURM_CPUS_PER_TASK": "2",
        "SBATCH_QOS": "x",
        "SLURM_CONF": "/etc/s",
    }
    assert srun.step_environment({**job, "PATH": "/bin"}) == {
        "SLURM_JOB_ID": "7",
        "SLURM_CONF": "/etc/s",
        "PATH": "/bin",
    }


def test_ranks_meet_on_the_first_node_at_a_port_of_their_own(monkeypatch):
    asked = []
    monkeypatch.setattr(srun, "_output", lambda *words: asked.append(words) or "node3\nnode4")
    environment = {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[3-4]"}
    address, port = srun.master(environment)
    assert address == "node3"
    assert srun.master(environment, "i")[0] == "node3i"
    del asked[1:]
    assert asked == [("scontrol", "show", "hostnames", "node[3-4]")]
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        assert srun.master(environment)[1] != port
    assert srun.master({**environment, "SLURM_JOB_ID": "124"})[1] != port
    with pytest.raises(UserError, match="SLURM_JOB_ID is not set"):
        srun.master({})
