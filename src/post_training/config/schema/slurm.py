"""Slurm jobs and containers."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SlurmCpuConfig:
    """Where CPU rules run."""

    partition: str | None = None
    """Partition. Null = the cluster's default."""
    account: str | None = None
    """Account. Null = `slurm.account`."""
    qos: str | None = None
    """Quality of service. Null = the cluster's default."""
    cpus_per_task: int = 8
    """Cores of a job."""
    mem: str | None = None
    """Memory of a job, such as `32G`. Null = the partition's default."""
    wall_time: str = "04:00:00"
    """Time limit, `HH:MM:SS` or `D-HH:MM:SS`, in quotes."""
    constraint: str | None = None
    """Node features."""
    reservation: str | None = None
    """Reservation."""
    exclude: str | None = None
    """Nodes that are not used, such as `node[3,7]`."""
    extra: str = ""
    """Further `sbatch` options."""


@dataclass
class SlurmGenerateConfig:
    """Where a generate shard runs, or a reward model: a job with the GPUs that its model needs, many at once."""

    partition: str | None = None
    """Partition. Null = `slurm.partition`."""
    qos: str | None = None
    """Quality of service. Null = `slurm.qos`."""
    wall_time: str | None = None
    """Time limit, `HH:MM:SS` or `D-HH:MM:SS`, in quotes; the job continues in the next one. Null = `slurm.wall_time`."""
    constraint: str | None = None
    """Node features. Null = `slurm.constraint`."""
    server_command: str = ".venv-vllm/bin/vllm serve {model} --port {port}"
    """Command of a `generate.server` that gives neither `command` nor `url`: `make vllm` makes that environment. One place for every
    dataset, and for a cluster's `profiles/<cluster>/slurm.yaml`."""


@dataclass
class ContainerConfig:
    """The image that GPU work runs in; the launcher itself runs outside of it."""

    image: str | None = None
    """A `.sif` file or a folder. Null = no container."""
    bind: list[str] = field(default_factory=list)
    """Folders that are seen inside, `source[:target[:options]]`; the working directory always is."""
    env_file: str | None = None
    """File of `NAME=value` lines that are set inside."""
    program: str = "apptainer"
    """`apptainer` or `singularity`."""
    options: list[str] = field(default_factory=lambda: ["--nv"])
    """Further words of `apptainer exec`: `--nv` for NVIDIA, `--rocm` for AMD."""
    python: str = "python"
    """The interpreter inside, which must find this package (install it in the image, or set PYTHONPATH in `env_file`)."""


@dataclass
class SlurmConfig:
    """Where rules run under `--executor slurm`. Never makes a stage stale."""

    cluster: str | None = None
    """A folder of `profiles/`, or a YAML file, whose `slurm` keys are defaults below these."""
    partition: str | None = None
    """Partition of the GPU rules. Null = the cluster's default."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    num_nodes: int = 1
    """Nodes of a training allocation."""
    gpus_per_node: int = 1
    """GPUs a node, one rank each. 0 = no GPUs: `accelerate.num_processes` CPU ranks a node, or one."""
    gpu_type: str | None = None
    """Type of the GPUs that are asked for, as in the cluster's gres: `a100` for `gpu:a100:4`. Null = of any type."""
    gpu_model: str | None = None
    """GPU model: `a100-64`, `h100-80`, `gh200`, `mi250x`, ... Preflight predicts for it, and export, evaluations and generate jobs
    ask for as many as their model needs. Null = as the partition's gres says; jobs go by `gpu_type`, or have one GPU."""
    cpus_per_gpu: int = 8
    """Cores a rank."""
    cpus_per_task: int | None = None
    """Cores a rank, for clusters that count them by task. Null = `cpus_per_gpu`."""
    mem: str | None = None
    """Memory a node, such as `200G`, of which a rule beside training takes its share; `0` = all of it, for every rule. Null =
    the partition's default."""
    wall_time: str = "24:00:00"
    """Time limit of one allocation, `HH:MM:SS` or `D-HH:MM:SS`, in quotes."""
    signal_time_seconds: int = 300
    """Slurm warns the ranks this long before the limit (or up to 60 s earlier); they save and stop. 60 or more."""
    requeue: bool | None = None
    """Whether a job may be requeued under its id. Null = the cluster's default; where it may not, a new job resumes the run."""
    max_failures: int = 3
    """Failures of a run after which it is resubmitted; the next one ends it. Reaching the wall time is not a failure."""
    wait_seconds: int = 3600
    """How long Slurm may give no answer, as while its controller restarts, before a call or a job gives up."""
    constraint: str | None = None
    """Node features, such as `h100`."""
    reservation: str | None = None
    """Reservation."""
    exclude: str | None = None
    """Nodes that are not used, such as `node[3,7]`."""
    job_name: str | None = None
    """Prefix of job names. Null = none: jobs are named after their stages' folders."""
    extra: str = ""
    """Further `sbatch` options."""
    modules: list[str] = field(default_factory=list)
    """Environment modules that are loaded before a job's work begins."""
    env: dict[str, Any] = field(default_factory=dict)
    """Environment variables of every job, set after the modules, on each rank and inside the container:
    `{NCCL_SOCKET_IFNAME: ib0}`. Those of `slurm.cluster` stay beside these."""
    cpu_bind: str | None = None
    """srun's `--cpu-bind` for the ranks: `cores`, `mask_cpu:0xfe,0xfe00`, `none`. Null = the cluster's default."""
    gpu_bind: str | None = None
    """srun's `--gpu-bind` for the ranks: `closest`, `single:1`, `map:4,5`, `none`. Null = the cluster's default."""
    master_suffix: str = ""
    """Appended to the first node's name in the address where ranks meet: `i` on JUWELS and JURECA, `-ib0` elsewhere."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    """Container of the GPU rules."""
    cpu: SlurmCpuConfig = field(default_factory=SlurmCpuConfig)
    """The CPU rules."""
    generate: SlurmGenerateConfig = field(default_factory=SlurmGenerateConfig)
    """Generate shards and reward models."""
