"""Body of the rule `train`: start one rank a device, watch them, and write the manifest when all have ended well.

What the ranks get (environment, command line, srun's options) is made by pure functions at the top.
Light: the ranks import torch, the launcher never does.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from post_training import batch, manifest
from post_training.batch import Topology
from post_training.config import resolve
from post_training.errors import UserError
from post_training.fingerprint import write_atomically
from post_training.slurm import srun
from post_training.slurm.placement import cores
from post_training.task import Task
from post_training.training.arguments import deepspeed_config
from post_training.training.finish import finish_if_complete

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Process id of a local launcher, with which its ranks die: orphans would train beside the next attempt.
LAUNCHER = "POST_TRAINING_LAUNCHER"
# After the first failure the other ranks are asked to end, then killed: they may hang in a collective.
GRACE_SECONDS = 5.0


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
    if "wandb" in view["logging"]["report_to"]:
        # One run in W&B however often it is resumed.
        variables |= {"WANDB_DIR": str(logs), "WANDB_RUN_ID": directory.name, "WANDB_RESUME": "allow"}
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
    return [python, "-u", "-m", "post_training.training", "--task", str(task_file)]


def run(task: Task) -> int:
    """Train to the last step, or compute a reference; or say why not. Returns the code of the first rank that failed."""
    method = task.config["method"]
    view = resolve(task.runtime["pipeline"]).views[method]
    on_slurm = bool(task.runtime.get("slurm"))
    topology = batch.slurm_topology(view) if on_slurm else batch.local_topology(view)
    if task.stage == "reference":
        return _run_reference(task, view, topology)
    plan = batch.batch_plan(view, method, topology)
    steps = batch.steps(view, method, manifest.read(task.inputs["data"])["rows_out"])
    assert steps is not None
    print(f"{method}: {plan.describe(steps)}", flush=True)
    prepare_directory(task, view)
    # A kill between the last checkpoint and the manifest must not cost the training again.
    if finish_if_complete(task, steps):
        return 0
    code = _run_ranks(task, view, topology)
    if code == 0 and not finish_if_complete(task, steps):
        raise UserError(f"{task.directory}: training ended before step {steps} was saved; run it again to go on")
    return code


def _run_reference(task: Task, view: dict[str, Any], topology: Topology) -> int:
    from post_training.training.reference import finish_if_whole

    if finish_if_whole(task):
        return 0
    code = _run_ranks(task, view, topology)
    if code == 0 and not finish_if_whole(task):
        raise UserError(f"{task.directory}: the ranks ended before every pair was done; run it again to go on")
    return code


def _run_ranks(task: Task, view: dict[str, Any], topology: Topology) -> int:
    task_file = write_task(task)
    libraries = library_environment(view, task.directory, topology.device)
    start = _run_srun if task.runtime.get("slurm") else _run_local
    return start(topology, view, task_file, libraries)


def prepare_directory(task: Task, view: dict[str, Any]) -> None:
    """The run directory with `logs/`, and `config.yaml`: a configuration that makes this run again."""
    from omegaconf import OmegaConf

    directory = task.directory
    if view["debug"]["enabled"] and view["debug"]["override_existing"] and directory.is_dir():
        print(f"{directory}: wiped (debug.override_existing)", flush=True)
        for path in directory.iterdir():
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


def _run_local(topology: Topology, view: dict[str, Any], task_file: Path, libraries: Mapping[str, str]) -> int:
    cores, group = len(os.sched_getaffinity(0)), deepspeed_config(view) is not None
    port = free_port()
    environments = [
        rank_environment(topology, rank, "127.0.0.1", port, os.environ, libraries=libraries, cores=cores, group=group)
        for rank in range(topology.world_size)
    ]
    for environment in environments:
        environment[LAUNCHER] = str(os.getpid())
    return _run([rank_command(task_file)] * topology.world_size, environments)


def _run_srun(topology: Topology, view: dict[str, Any], task_file: Path, libraries: Mapping[str, str]) -> int:
    address, port = srun.master(os.environ)
    node_cores = cores(view) * topology.devices_per_node
    group = deepspeed_config(view) is not None
    base = srun.step_environment(os.environ)
    environment = rank_environment(topology, 0, address, port, base, libraries=libraries, cores=node_cores, group=group)
    return _run([srun.srun_command(topology, view, rank_command(task_file))], [environment])


def _run(commands: list[list[str]], environments: list[dict[str, str]]) -> int:
    """Start all, wait for all; the exit code of the first that failed, or 0."""
    several = len(commands) > 1
    pipe = subprocess.PIPE if several else None
    # Own sessions: a Ctrl-C reaches the ranks once, through us, and not twice.
    processes = [
        subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        for command, env in zip(commands, environments, strict=True)
    ]
    relays = []
    for rank, process in enumerate(processes if several else []):
        for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            relay = threading.Thread(target=_relay, args=(source, sink, f"[rank {rank}] "), daemon=True)
            relay.start()
            relays.append(relay)
    failure = _watch(processes)
    for relay in relays:
        relay.join(timeout=2)
    return _report(*failure, several) if failure else 0


def _relay(source: TextIO, sink: TextIO, prefix: str) -> None:
    for line in source:
        sink.write(prefix + line)
        sink.flush()


def _watch(processes: list[subprocess.Popen[str]]) -> tuple[int, int] | None:
    """Wait for all and forward signals; when one fails, end the others and say which it was, with its code."""

    def forward(number: int, _: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        while True:
            codes = [process.poll() for process in processes]
            failed = next((rank for rank, code in enumerate(codes) if code), None)
            if failed is not None:
                return failed, codes[failed] or 1
            if all(code == 0 for code in codes):
                return None
            time.sleep(0.1)
    finally:
        _end(processes)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _report(rank: int, code: int, several: bool) -> int:
    """One line for a death that explains itself nowhere else; a rank's own error has been shown already."""
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        print(f"rank {rank} was killed by {signal.Signals(-code).name}{hint}", file=sys.stderr, flush=True)
        return 128 - code
    if several:
        print(f"rank {rank} failed first, with exit code {code}; its error is above", file=sys.stderr, flush=True)
    return code


def _end(processes: list[subprocess.Popen[str]]) -> None:
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
