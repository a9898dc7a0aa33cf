"""Commands and environments with which ranks are started, on this machine or with srun."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from post_training.config.batch import Topology
from post_training.config.deepspeed import deepspeed_config
from post_training.models import hub_kernel
from post_training.slurm import srun
from post_training.slurm.placement import cores as cores_of

LAUNCHER = "POST_TRAINING_LAUNCHER"
"""Process id of a local launcher, with which its ranks die: orphans would train beside the next attempt."""
Processes = tuple[list[list[str]], list[dict[str, str]]]
"""Command and environment of each process to start."""


def library_environment(
    view: dict[str, Any], directory: Path, device: str, kernel: Path | None = None
) -> dict[str, str]:
    """Variables that our libraries read, the same on every rank.

    Args:
        view: the stage's flat configuration.
        directory: the run directory.
        device: `GPU` or `CPU`.
        kernel: the manifest of an attention kernel from the Hub.
    """
    logs = str(directory / "logs")
    # TRL reports each start otherwise.
    variables = {"TENSORBOARD_LOGGING_DIR": logs, "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    if kernel is not None:
        variables |= hub_kernel.environment(kernel)
    if view["training"]["deterministic"]:
        # Read when cuBLAS makes its first handle, and by flash-attn at each backward pass.
        variables |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
    if "wandb" in view["logging"]["report_to"]:
        # One run in W&B however often it is resumed. Its console would catch what is printed before secrets are masked.
        variables |= {
            "WANDB_DIR": logs,
            "WANDB_RUN_ID": directory.name,
            "WANDB_RESUME": "allow",
            "WANDB_CONSOLE": "off",
        }
        if view["logging"]["wandb_project"]:
            variables["WANDB_PROJECT"] = view["logging"]["wandb_project"]
        if view["offline"]:
            variables["WANDB_MODE"] = "offline"
    if view["offline"]:
        variables |= dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    if device == "CPU":
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if deepspeed_config(view) is None:  # with it set, Accelerate silently ignores DeepSpeed
            variables["ACCELERATE_USE_CPU"] = "true"
    return variables


def rank_environment(
    topology: Topology, rank: int, master: tuple[str, int], inherited: Mapping[str, str], cores: int, group: bool = True
) -> dict[str, str]:
    """The complete environment of one rank.

    Args:
        topology: where ranks run; `rank` counts through its nodes.
        rank: 0 to `topology.world_size - 1`.
        master: host of rank 0, and a free port there.
        inherited: what is inherited, and `library_environment(...)`.
        cores: cores of a node that its ranks share.
        group: whether a single rank forms a process group too, which only DeepSpeed needs.
    """
    per_node = topology.devices_per_node
    environment = {
        # Threads that spin while they wait make a step ten times slower where cores are shared.
        "OMP_WAIT_POLICY": "PASSIVE",
        **inherited,
        "RANK": str(rank),
        "WORLD_SIZE": str(topology.world_size),
        "LOCAL_RANK": str(rank % per_node),
        "LOCAL_WORLD_SIZE": str(per_node),
        "MASTER_ADDR": master[0],
        "MASTER_PORT": str(master[1]),
        "OMP_NUM_THREADS": str(max(1, cores // per_node)),
    }
    if topology.world_size == 1 and not group:
        # LOCAL_RANK alone makes Accelerate wrap the model for several ranks, which costs a copy of each gradient.
        del environment["LOCAL_RANK"]
        if topology.device == "GPU":
            # Without it Transformers would use every GPU that it sees, in one process. On AMD's PyTorch counts by its own lists.
            amd = {"ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"} & inherited.keys()
            for name in ("CUDA_VISIBLE_DEVICES", *(["HIP_VISIBLE_DEVICES"] if amd else [])):
                environment[name] = inherited.get(name, "0").split(",")[0]
    return environment


def local_start(topology: Topology, view: dict[str, Any], rank: list[str], libraries: Mapping[str, str]) -> Processes:
    """The ranks on this machine; `rank` is the command line of one."""
    cores, group = len(os.sched_getaffinity(0)), deepspeed_config(view) is not None
    inherited = {**os.environ, **libraries, LAUNCHER: str(os.getpid())}
    master = ("127.0.0.1", srun.free_port(os.getpid()))
    numbers = range(topology.world_size)
    return [rank] * len(numbers), [
        rank_environment(topology, number, master, inherited, cores, group) for number in numbers
    ]


def srun_start(topology: Topology, view: dict[str, Any], rank: list[str], libraries: Mapping[str, str]) -> Processes:
    """The one srun that starts the ranks of this Slurm job; `rank` is the command line of one."""
    master = srun.master(os.environ, view["slurm"]["master_suffix"])
    inherited = {**srun.step_environment(os.environ), **libraries}
    cores, group = cores_of(view) * topology.devices_per_node, deepspeed_config(view) is not None
    return [srun.srun_command(topology, view, rank)], [rank_environment(topology, 0, master, inherited, cores, group)]
