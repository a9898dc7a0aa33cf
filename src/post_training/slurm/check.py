"""Whether the cluster would take the jobs, asked before one is queued.

Asked by the preflight for every rule, and by the executor for the jobs that it is about to submit.

`sbatch --test-only` knows partitions, accounts, nodes and limits. It does not refuse a time limit above the
partition's (such a job waits for ever), and refuses what only waits for a drained node to come back;
both are compared with what `sinfo` lists.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from post_training.config import batch
from post_training.core.errors import ConfigError, require
from post_training.core.stages import STAGES
from post_training.slurm import cluster, placement
from post_training.slurm.job import StageJob
from post_training.slurm.patience import AwayError, Patience

# A word of Slurm's error message -> the key that it is about.
_KEYS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "reservation": "reservation",
    "feature": "constraint",
    "time limit": "wall_time",
    "gres": "gpus_per_node",
    "node list": "exclude",
}
# What a user may name.
_LISTS = {"partition": "sinfo --summarize", "account": 'sacctmgr show associations user="$USER" format=account'}


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind in a partition."""

    count: int
    cores: int
    megabytes: int
    gpus: int
    minutes: float
    """Longest job."""


def check_jobs(jobs: list[StageJob]) -> list[str]:
    """Ask Slurm about every placement among some jobs; returns warnings.

    Raises:
        ConfigError: for the first job that the cluster would not take.
        UserError: when Slurm gave no answer for `slurm.wait_seconds`.
    """
    distinct: dict[tuple[str, ...], StageJob] = {}
    for job in jobs:
        distinct.setdefault(tuple(placement.options(job.resources, job.view, job.kind)), job)
    warnings: list[str] = []
    for words, job in distinct.items():
        _check_torch(job)
        warnings += Patience(job.wait_seconds).ask(partial(_check_one, job, list(words)))
    return warnings


def _check_one(job: StageJob, words: list[str]) -> list[str]:
    section = "slurm" if STAGES[job.kind].on_gpu else "slurm.cpu"
    found = job.resources
    partition = found.get("slurm_partition")
    kinds = fitting = nodes(partition, job.view["slurm"]["gpu_type"] if found.get("gres") else None)
    minutes, wanted_gpus = int(found["runtime"]), int((re.findall(r"\d+$", found.get("gres") or "") or ["0"])[0])
    shown = f"partition {partition}" if partition else "the default partition"
    cores, memory = found["cpus_per_task"] * found["tasks_per_node"], int(found.get("mem_mb") or 0)
    per_gpu = wanted_gpus and not job.view["slurm"]["cpus_per_task"]
    for key, attribute, least, noun in (
        ("wall_time", "minutes", minutes, "minutes"),
        ("gpus_per_node", "gpus", wanted_gpus, "GPUs a node"),
        ("cpus_per_gpu" if per_gpu else "cpus_per_task", "cores", cores, "cores a node"),
        ("mem", "megabytes", memory, "MB a node"),
    ):
        left = [kind for kind in fitting if getattr(kind, attribute) >= least]
        if fitting and not left:
            most = max(getattr(kind, attribute) for kind in fitting)
            raise ConfigError(f"{section}.{key}", f"{least} {noun} asked of {shown}, which has {most} at most")
        fitting = left
    there = sum(kind.count for kind in fitting)
    shortage = f"{found['nodes']} nodes asked of {shown}, which has {there} such nodes"
    require(not kinds or there >= found["nodes"], f"{section}.num_nodes", shortage)
    done = cluster.run("sbatch", "--test-only", *words, "--wrap=true")
    if done.returncode == 0:
        _check_accounting(job, section)
        return []
    refusal = cluster.one_line(done.stderr)
    if kinds and "node configuration is not available" in refusal:
        return [f"{job.name}: not enough nodes of {shown} are up now; the job will wait for them"]
    if cluster.is_away(done):
        raise AwayError(f"sbatch: {refusal}")
    key = next((key for word, key in _KEYS.items() if word in refusal.lower()), "partition")
    value = job.view["slurm"]["cpu"].get(key) if section == "slurm.cpu" else job.view["slurm"].get(key)
    lists = f"; `{_LISTS[key]}` lists yours" if key in _LISTS else ""
    problem = f"found {value!r}; the cluster refuses the job: {refusal}{lists} (sbatch {' '.join(words)})"
    raise ConfigError(f"{section}.{key}", problem)


def nodes(partition: str | None, gpu_type: str | None = None) -> list[Nodes]:
    """Kinds of nodes of a partition, with their GPUs of a type or all, drained and down ones as well; empty when it cannot be asked or does not exist."""
    where = [f"--partition={partition}"] if partition else []
    done = cluster.run("sinfo", "--noheader", *where, "--format=%P|%D|%c|%m|%G|%l")
    kinds = []
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        name, count, cores, megabytes, gres, limit = line.split("|")
        if partition is None and not name.endswith("*"):
            continue
        typed = rf":{re.escape(gpu_type)}" if gpu_type else r"(?::[\w.-]+)?"
        gpus = sum(int(number) for number in re.findall(rf"\bgpu{typed}:(\d+)", gres))
        kinds.append(Nodes(int(count), int(cores.rstrip("+")), int(megabytes.rstrip("+")), gpus, _minutes(limit)))
    return kinds


def _minutes(limit: str) -> float:
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not match:
        return math.inf
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes


def _check_accounting(job: StageJob, section: str) -> None:
    """Account and QOS that do not exist: clusters that do not enforce them accept any word."""
    for key, resource, column in (("account", "slurm_account", "Account"), ("qos", "qos", "Name")):
        if name := job.resources.get(resource):
            done = cluster.run("sacctmgr", "--noheader", "--parsable2", "show", key, f"format={column}")
            known = {line.strip().lower() for line in done.stdout.splitlines() if line.strip()}
            accepted = done.returncode != 0 or not known or str(name).lower() in known
            require(accepted, f"{section}.{key}", f"found {name!r}, which the cluster's accounting does not know")


def _check_torch(job: StageJob) -> None:
    """GPUs that this environment's PyTorch could never use."""
    from importlib.metadata import PackageNotFoundError, version

    if STAGES[job.kind].place != "ranks" or job.view["slurm"]["container"]["image"]:
        return
    with_gpus = batch.slurm_topology(job.view).device == "GPU"
    try:
        build = version("torch")
    except PackageNotFoundError:
        return
    if with_gpus and build.endswith("+cpu"):
        raise ConfigError(
            "slurm.gpus_per_node",
            f"found {job.view['slurm']['gpus_per_node']}, but PyTorch {build} here has no GPU support; install with "
            "`make install BUILD=cuda`, or train on the CPU with accelerate.use_cpu=true",
        )


def check_views(views: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """`check_jobs` for every rule of some stages by their names, whatever is done already. Raises ConfigError."""
    jobs = []
    for name, view in views:
        for kind in (*(name for name, kind in STAGES.items() if kind.on_gpu), "mix"):
            output = Path(f"{name}-{kind}").absolute() / "manifest.json"
            jobs.append(StageJob(kind, view, output, [], placement.resources(view, kind)))
    return check_jobs(jobs)
