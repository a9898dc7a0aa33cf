"""Command and environment of a training job's ranks inside an allocation."""

import os
import shlex
import socket
from collections.abc import Mapping
from typing import Any

from post_training.config.batch import Topology
from post_training.core.errors import UserError
from post_training.slurm import cluster
from post_training.slurm.placement import cores

# What srun would read as options of its own: counts of the whole job, where a step needs its own.
_INPUTS = ("SLURM_", "SRUN_", "SBATCH_")
_KEPT = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURM_JOB_NODELIST", "SLURM_RESTART_COUNT")
_CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
}
# Counts the devices that this task sees in whichever list of them is shortest: all of the node's, or, where a site pins a
# device to each task, that one. Ranks take device number LOCAL_RANK of what they see.
_VISIBLE = (
    "visible={most}; "
    'for list in "$CUDA_VISIBLE_DEVICES" "$HIP_VISIBLE_DEVICES" "$ROCR_VISIBLE_DEVICES"; do '
    'IFS=, read -ra seen <<<"$list"; (( ${{#seen[@]}} == 0 || ${{#seen[@]}} > visible )) || visible=${{#seen[@]}}; done'
)
_FIRST_PORT, _PORTS = 15000, 17000
"""Below the range from which Linux takes the ports of outgoing connections."""


def srun_command(topology: Topology, view: dict[str, Any], rank: list[str]) -> list[str]:
    """`srun` that starts every rank of an allocation, one task a rank; `rank` is the command of one.

    All three counts are given: with one missing srun takes it from the job, and can start a second
    set of ranks that waits for ever. One dead rank ends the step.
    """
    return [
        "srun",
        f"--nodes={topology.num_nodes}",
        f"--ntasks={topology.world_size}",
        f"--ntasks-per-node={topology.devices_per_node}",
        f"--cpus-per-task={cores(view)}",
        *(f"--{key.replace('_', '-')}={view['slurm'][key]}" for key in ("cpu_bind", "gpu_bind") if view["slurm"][key]),
        "--kill-on-bad-exit=1",
        "--export=ALL",
        "bash",
        "-c",
        rank_script(topology, view, rank),
    ]


def rank_script(topology: Topology, view: dict[str, Any], rank: list[str]) -> str:
    """What bash does on each node before it becomes a rank.

    USR1 and USR2 stay ignored until Python has its handlers; without that Slurm's warning kills a
    rank that is still importing. Caches that compile go to the node's own disk, into a folder that is
    this user's: their content is executed.
    """
    # Again, because a prolog of the cluster's may have changed them since the job script set them.
    lines = [exports(view)] if view["slurm"]["env"] else []
    if topology.device == "CPU":
        # srun has set it to the node's GPUs; Accelerate would use one in spite of its own settings.
        lines.append("export CUDA_VISIBLE_DEVICES=")
    # A rank alone has its numbers already; see launch/environment.py.
    if topology.world_size > 1:
        on_gpu = topology.device == "GPU"
        lines += [_VISIBLE.format(most=topology.devices_per_node)] if on_gpu else []
        local = "$((SLURM_LOCALID % visible))" if on_gpu else "$SLURM_LOCALID"
        lines.append(f"export RANK=$SLURM_PROCID LOCAL_RANK={local}")
    lines.append('scratch="${TMPDIR:-/tmp}/post-training-$(id -u)"')
    lines.append('mkdir -p -m 700 "$scratch" && [ -O "$scratch" ] || scratch=$(mktemp -d)')
    lines.append("export " + " ".join(f'{variable}="$scratch/{folder}"' for variable, folder in _CACHES.items()))
    if view["slurm"]["container"]["image"]:
        # A TMPDIR of the job's own is not among the folders that a container sees by itself.
        bind = f"{view['slurm']['container']['program'].upper()}_BIND"
        lines.append(f'export {bind}="${{{bind}:+${bind},}}$scratch"')
    words = shlex.join(container_command(view, rank))
    return "; ".join(["trap '' USR1 USR2", *lines, f"exec {words}"])


def exports(view: dict[str, Any]) -> str:
    """`slurm.env` as a line of a shell script."""
    return "export " + " ".join(f"{name}={shlex.quote(str(value))}" for name, value in view["slurm"]["env"].items())


def container_command(view: dict[str, Any], command: list[str]) -> list[str]:
    """A Python command inside of `slurm.container`, or as it is. The first word becomes the image's interpreter.

    The host's PYTHONPATH stays outside: its packages are for another interpreter. Variables of `slurm.env` go over those
    that the image sets; as `APPTAINERENV_*`, because `--env` splits values at commas.
    """
    container = view["slurm"]["container"]
    if not container["image"]:
        return command
    binds = [word for bind in container["bind"] for word in ("--bind", bind)]
    env_file = ["--env-file", container["env_file"]] if container["env_file"] else []
    options = [*container["options"], "--pwd", os.getcwd(), "--bind", os.getcwd(), *binds, *env_file]
    inside = [f"{container['program'].upper()}ENV_{name}={value}" for name, value in view["slurm"]["env"].items()]
    program = ["env", "--unset=PYTHONPATH", *inside, container["program"], "exec"]
    return [*program, *options, container["image"], container["python"], *command[1:]]


def step_environment(base: Mapping[str, str]) -> dict[str, str]:
    """What srun inherits: the job's environment without the job's own counts."""
    return {name: value for name, value in base.items() if name in _KEPT or not name.startswith(_INPUTS)}


def master(environment: Mapping[str, str], suffix: str = "") -> tuple[str, int]:
    """Address and port where the ranks of this allocation meet. Called on its first node.

    Args:
        environment: the job's.
        suffix: what the cluster appends to a node's name for its fast network.

    Raises:
        UserError: outside of a Slurm job.
    """
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        raise UserError("SLURM_JOB_ID is not set: this job is meant for `snakemake --executor slurm`, not for a shell")
    nodes = environment.get("SLURM_JOB_NODELIST") or _output("squeue", "-h", "-j", job, "-o", "%N")
    return _output("scontrol", "show", "hostnames", nodes).split()[0] + suffix, free_port(int(job))


def free_port(number: int) -> int:
    """A port of this machine that nothing listens on; the search begins at a place that depends on a job's number."""
    for offset in range(_PORTS):
        port = _FIRST_PORT + (number * 7 + offset) % _PORTS
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port from {_FIRST_PORT} to {_FIRST_PORT + _PORTS} on {socket.gethostname()}")


def _output(*command: str) -> str:
    done = cluster.run(*command)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: failed ({done.stderr.strip()})")
    return done.stdout.strip()
