"""Body of the rule `train`: start one rank a device, watch them, and write the manifest when all have ended well.

What the ranks get (environment, command line, srun's options) is made by pure functions at the top.
Light: the ranks import torch, the launcher never does.

Exit codes of `run`, which callers may rely on:

    0               the manifest is written
    REQUEUE (85)    stopped by SIGUSR1, all saved: start it again
    STOPPED (143)   stopped by SIGTERM, all saved; INTERRUPTED (130) the same by SIGINT
    LOCKED (75)     another live start trains this run; nothing was done
    anything else   a failure, told on stderr; the last whole checkpoint is kept

After a stop `<run directory>/stopped.json` names the signal and the step.
"""

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from post_training.config import batch, resolve
from post_training.config.batch import Topology
from post_training.config.deepspeed import deepspeed_config, strategy
from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically
from post_training.core.task import Task
from post_training.launch.finish import finish_if_complete
from post_training.launch.processes import Ended, run_together, say, snakemake_is_gone
from post_training.launch.reshard import how_to_resume, make_universal
from post_training.run_dir import failures, predictions, timeline, wandb_offline
from post_training.run_dir.checkpoints import discard_incomplete, newest_complete
from post_training.run_dir.lock import LOCKED, VARIABLE, Lock, LockedError, is_own_file, take
from post_training.run_dir.stop import (
    INTERRUPTED,
    REQUEST,
    REQUEUE,
    STOPPED,
    clear_stop_marker,
    read_stopped,
    through_srun,
    write_stopped,
)
from post_training.slurm import srun
from post_training.slurm.placement import cores

__all__ = ["INTERRUPTED", "LOCKED", "REQUEUE", "STOPPED", "run"]

# Process id of a local launcher, with which its ranks die: orphans would train beside the next attempt.
LAUNCHER = "POST_TRAINING_LAUNCHER"


def library_environment(view: dict[str, Any], directory: Path, device: str) -> dict[str, str]:
    """Variables that our libraries read, the same on every rank.

    Args:
        view: the stage's flat configuration.
        directory: the run directory.
        device: `GPU` or `CPU`.
    """
    logs = directory / "logs"
    variables = {
        "TENSORBOARD_LOGGING_DIR": str(logs),
        "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL reports each start otherwise
        "TOKENIZERS_PARALLELISM": "false",
    }
    if view["training"]["deterministic"]:
        # Read when cuBLAS makes its first handle, and by flash-attn at each backward pass.
        variables |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
    if "wandb" in view["logging"]["report_to"]:
        # One run in W&B however often it is resumed.
        variables |= {"WANDB_DIR": str(logs), "WANDB_RUN_ID": directory.name, "WANDB_RESUME": "allow"}
        variables["WANDB_CONSOLE"] = "off"  # it would catch what is printed before secrets in it are masked
        if view["logging"]["wandb_project"]:
            variables["WANDB_PROJECT"] = view["logging"]["wandb_project"]
        if view["offline"]:
            variables["WANDB_MODE"] = "offline"
    if view["offline"]:
        variables |= dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    if device == "CPU":
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if deepspeed_config(view) is None:  # with it set, Accelerate ignores DeepSpeed without a word
            variables["ACCELERATE_USE_CPU"] = "true"
    return variables


def rank_environment(
    topology: Topology,
    rank: int,
    master_address: str,
    master_port: int,
    base_env: Mapping[str, str],
    *,
    libraries: Mapping[str, str],
    cores: int,
    group: bool = True,
) -> dict[str, str]:
    """The whole environment of one local rank.

    Args:
        topology: where ranks run; `rank` counts through its nodes.
        rank: 0 to `topology.world_size - 1`.
        master_address: host of rank 0.
        master_port: free port there.
        base_env: what is inherited.
        libraries: `library_environment(...)`.
        cores: cores of a node that its ranks share.
        group: whether a single rank forms a process group too, which only DeepSpeed needs.
    """
    per_node = topology.devices_per_node
    environment = {
        **base_env,
        **libraries,
        "RANK": str(rank),
        "WORLD_SIZE": str(topology.world_size),
        "LOCAL_RANK": str(rank % per_node),
        "LOCAL_WORLD_SIZE": str(per_node),
        "MASTER_ADDR": master_address,
        "MASTER_PORT": str(master_port),
        "OMP_NUM_THREADS": str(max(1, cores // per_node)),
        # Threads that spin while they wait make a step ten times slower where cores are shared.
        "OMP_WAIT_POLICY": base_env.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    if topology.world_size == 1 and not group:
        # LOCAL_RANK alone makes Accelerate wrap the model for several ranks, which costs a copy of each gradient.
        del environment["LOCAL_RANK"]
        if topology.device == "GPU":
            # Without it Transformers would use every GPU that it sees, in one process.
            environment["CUDA_VISIBLE_DEVICES"] = base_env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return environment


def rank_command(task_file: Path, python: str = sys.executable) -> list[str]:
    """Command line of a rank; everything else it needs stands in the file and the environment."""
    return [python, "-u", "-m", "post_training.rank", "--task", str(task_file)]


def run(task: Task) -> int:
    """Train to the last step, or compute a reference; or say why not. Returns one of the exit codes above."""
    try:
        with REQUEST, take(task.directory, give_up=snakemake_is_gone) as lock:
            return _run_owned(task, lock)
    except LockedError as error:
        say(str(error))
        return LOCKED


def _run_owned(task: Task, lock: Lock) -> int:
    view = resolve(task.runtime["pipeline"]).last
    method = view["method"]
    from post_training.data.mixing.epochs import write_epochs

    topology = batch.slurm_topology(view) if task.runtime.get("slurm") else batch.local_topology(view)
    if task.stage == "reference":
        from post_training.methods.dpo.reference import finish_if_whole

        return _run_ranks(task, view, topology, lock, lambda: finish_if_whole(task))
    plan = batch.batch_plan(view, method, topology)
    steps = batch.steps(view, method, manifest.read(task.inputs["data"])["rows_out"])
    assert steps is not None
    print(f"{view['stage']}: {plan.describe(steps)}", flush=True)
    prepare_directory(task, view)
    predictions.begin(task, view["stage"])
    write_epochs(task.inputs["data"], steps * plan.rows)
    return _run_ranks(task, view, topology, lock, lambda: finish_if_complete(task, steps))


def _run_ranks(
    task: Task, view: dict[str, Any], topology: Topology, lock: Lock, finish_if_whole: Callable[[], bool]
) -> int:
    """Start the ranks, unless what they make is whole already, and finish when they are done."""
    # A kill between the last of the work and the manifest must not cost the work again.
    if finish_if_whole():
        return 0
    told = task.directory / "logs" / "failures"
    failures.clear(told)
    clear_stop_marker(task.directory)
    ended = Ended()
    if task.stage == "train":
        timeline.note_start(task.directory, task.started, topology.world_size)
        reshard(task, view, topology.world_size)
    if REQUEST.wanted:
        write_stopped(task.directory, REQUEST.wanted, None)
    else:
        ended = _start_and_wait(task, view, topology, lock)
        wandb_offline.print_sync_command(task.directory)
    stopped = read_stopped(task.directory)
    if stopped is not None:
        print(f"{task.directory}: {stopped.describe()}; start again to go on", flush=True)
        return stopped.exit_code
    if ended.first is not None:
        if not lock.lost:  # what was being saved takes the room that the next attempt needs
            discard_incomplete(newest_complete(task.directory / "checkpoints"))
        _report(ended, failures.read(told), topology.world_size, local=not task.runtime.get("slurm"))
        return ended.code if ended.code > 0 else 128 - ended.code
    if not finish_if_whole():
        raise UserError(f"{task.directory}: the ranks ended before their work was whole; run it again to go on")
    return 0


def _start_and_wait(task: Task, view: dict[str, Any], topology: Topology, lock: Lock) -> Ended:
    task_file = write_task(task)
    libraries = library_environment(view, task.directory, topology.device)
    on_slurm = bool(task.runtime.get("slurm"))
    start = srun_start if on_slurm else local_start
    commands, environments = start(topology, view, task_file, libraries | {VARIABLE: str(lock.path.absolute())})

    def abandoned() -> str | None:
        if lock.lost:
            return f"{task.directory}: another start has taken over from this one, which stood still for minutes"
        gone = None if REQUEST.received else snakemake_is_gone()
        if gone:
            say(f"{gone}; saves and stops")
            REQUEST.received.append(signal.SIGTERM)
        return None

    return run_together(
        commands,
        environments,
        REQUEST,
        forwarded_as=through_srun if on_slurm else signal.Signals,
        asked=lock.mark_stopping,
        abandoned=abandoned,
    )


def reshard(task: Task, view: dict[str, Any], world_size: int) -> None:
    """Make the checkpoint that the ranks will resume from fit their number. Raises ConfigError when it cannot."""
    newest = newest_complete(task.directory / "checkpoints").chosen
    if newest and how_to_resume(newest, strategy(view), world_size).universal:
        make_universal(newest.path, REQUEST, task.directory / "logs" / "universal.log")


def _report(ended: Ended, told: list[failures.Failure], world_size: int, local: bool) -> None:
    """The first error first; then, in a line each, what other ranks said that does not only follow from it."""
    who = f"rank {ended.first}" if local else "a rank"
    if ended.code < 0 and (not told or told[0].follows):
        hint = " (out of memory?)" if ended.code == -signal.SIGKILL else ""
        say(f"{who} was killed by {signal.Signals(-ended.code).name}{hint}")
    elif not told:
        say(f"{who} failed first, with exit code {ended.code}; what it said is above")
    causes = {failure.line: failure for failure in reversed(told) if not failure.follows or failure is told[0]}
    if ended.code < 0:
        causes = {line: failure for line, failure in causes.items() if not failure.follows}
    for number, failure in enumerate(reversed(causes.values())):
        where = f"rank {failure.rank} on {failure.host}: " if world_size > 1 else ""
        say(where + ((failure.trace or failure.line).rstrip() if number == 0 else failure.line))
    followed = [str(failure.rank) for failure in told if failure.line not in causes]
    if followed:
        say(f"then the others ended: rank {', '.join(sorted(followed))}")


def prepare_directory(task: Task, view: dict[str, Any]) -> None:
    """The run directory with `logs/`, and `config.yaml`: a configuration that makes this run again."""
    from omegaconf import OmegaConf

    directory = task.directory
    if view["debug"]["enabled"] and view["debug"]["override_existing"] and directory.is_dir():
        print(f"{directory}: wiped (debug.override_existing)", flush=True)
        for path in directory.iterdir():
            if not is_own_file(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(task.runtime["pipeline"])))


def write_task(task: Task) -> Path:
    """`logs/task.json`, from which each rank reads what the launcher was told."""
    told = {
        "spec": task.spec,
        "runtime": task.runtime,
        "inputs": {name: str(path) for name, path in task.inputs.items()},
        "output": str(task.output),
    }
    path = task.directory / "logs" / "task.json"
    write_atomically(path, json.dumps(told, indent=1))
    return path


def read_task(path: Path) -> Task:
    """The inverse of `write_task`."""
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    inputs = {name: Path(manifest_path) for name, manifest_path in told["inputs"].items()}
    spec = told["spec"]
    return Task(spec["stage"], spec["config"], told["runtime"], inputs, Path(told["output"]), spec)


def local_start(
    topology: Topology, view: dict[str, Any], task_file: Path, libraries: Mapping[str, str]
) -> tuple[list[list[str]], list[dict[str, str]]]:
    """Commands and environments of the ranks on this machine."""
    cores, group = len(os.sched_getaffinity(0)), deepspeed_config(view) is not None
    port = free_port()
    environments = [
        rank_environment(topology, rank, "127.0.0.1", port, os.environ, libraries=libraries, cores=cores, group=group)
        for rank in range(topology.world_size)
    ]
    for environment in environments:
        environment[LAUNCHER] = str(os.getpid())
    return [rank_command(task_file)] * topology.world_size, environments


def srun_start(
    topology: Topology, view: dict[str, Any], task_file: Path, libraries: Mapping[str, str]
) -> tuple[list[list[str]], list[dict[str, str]]]:
    """The one command, and its environment, that starts the ranks of this Slurm job."""
    address, port = srun.master(os.environ, view["slurm"]["master_suffix"])
    node_cores = cores(view) * topology.devices_per_node
    group = deepspeed_config(view) is not None
    base = srun.step_environment(os.environ)
    environment = rank_environment(topology, 0, address, port, base, libraries=libraries, cores=node_cores, group=group)
    return [srun.srun_command(topology, view, rank_command(task_file))], [environment]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
