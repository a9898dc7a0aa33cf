"""`slurm.*` keys -> resources of a rule -> options of `sbatch`.

Resources have the names of Snakemake's Slurm plugin where it has one, so that `snakemake -n` shows
them, and `--set-resources` changes them.
"""

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from post_training.config.batch import slurm_topology
from post_training.config.schema.slurm import SlurmConfig, SlurmCpuConfig, SlurmGenerateConfig
from post_training.core.errors import ConfigError, at_least, require
from post_training.core.stages import STAGES

RESOURCES = (
    "slurm_partition", "slurm_account", "qos", "nodes", "tasks_per_node", "gres", "cpus_per_task", "mem_mb", "runtime",
    "constraint", "slurm_extra",
)  # fmt: skip
"""Names of what `resources` gives."""
# Slurm warns up to a minute early, and ignores a warning longer than this.
_SIGNAL_SECONDS = (60, 65535)
_NAMES = "letters, digits and any of . _ - + @ : , / only"
_PATTERNS = {
    "partition": (r"[\w.,+@-]+", _NAMES),
    "account": (r"[\w.+@-]+", _NAMES),
    "qos": (r"[\w.+@-]+", _NAMES),
    "reservation": (r"[\w.,+@-]+", _NAMES),
    "job_name": (r"[A-Za-z0-9][\w.-]{0,40}", "up to 41 letters, digits, '.', '_' and '-'"),
    "exclude": (r"[\w.,\[\]-]+", "a list of nodes, such as node[3,7-9]"),
    "gpu_type": (r"[\w.-]*[A-Za-z][\w.-]*", "a type of GPU as the cluster's gres says, such as a100"),
    "constraint": (r"[\w.,&|*()\[\]:+!=-]+", "features joined by & or |"),
    "mem": (r"\d+([KMGT]B?)?|0", "a size such as 200G, or 0 for all of a node"),
    "cpu_bind": (r"[\w:,.+*=-]+", "a value of srun's --cpu-bind, such as cores"),
    "gpu_bind": (r"[\w:,.+*=-]+", "a value of srun's --gpu-bind, such as closest"),
    "master_suffix": (r"[A-Za-z0-9.-]{0,64}", "the end of a host name, such as i or -ib0"),
}
# Variables of `slurm.env` that the launcher sets for each rank.
_NOT_ENV = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PATH")
# What the workflow decides, or what would give a job another shape than its ranks expect.
_NOT_EXTRA = (
    "-J", "--job-name", "-o", "--output", "-e", "--error", "--open-mode", "-D", "--chdir", "-N", "--nodes", "-n", "--ntasks",
    "--ntasks-per-node", "--ntasks-per-gpu", "--gres", "-G", "--gpus", "--gpus-per-node", "--gpus-per-task", "-c",
    "--cpus-per-task", "--cpus-per-gpu", "-t", "--time", "-s", "--signal", "--requeue", "--no-requeue", "-a", "--array", "--wrap",
    "--parsable", "--test-only", "-W", "--wait", "-A", "--account", "-p", "--partition", "-q", "--qos", "-C", "--constraint",
    "-x", "--exclude", "--reservation", "--mem", "--export", "-d", "--dependency", "-H", "--hold", "-M", "--clusters",
    "-h", "--help", "--usage", "-V", "--version", "-Q", "--quiet",
)  # fmt: skip
# Short options without a value: the next letter of the word is an option, too.
_FLAGS = "hHkIOQsuvVWX"


def check(view: dict[str, Any]) -> None:
    """Values of the section that Slurm, or a shell on the way to it, would take for something else.

    Raises:
        ConfigError: names the key.
    """
    slurm = view["slurm"]
    minima = {"gpus_per_node": 0, "max_failures": 0, "wait_seconds": 0}
    for name in ("num_nodes", "cpus_per_gpu", "cpus_per_task", *minima):
        at_least(minima.get(name, 1), slurm[name], f"slurm.{name}")
    at_least(1, slurm["cpu"]["cpus_per_task"], "slurm.cpu.cpus_per_task")
    sections: tuple[tuple[str, dict[str, Any], Any], ...] = (
        ("slurm", slurm, SlurmConfig),
        ("slurm.cpu", slurm["cpu"], SlurmCpuConfig),
        ("slurm.generate", slurm["generate"], SlurmGenerateConfig),
    )
    for section, values, config in sections:
        for field in fields(config):
            pattern, expected = _PATTERNS.get(field.name, (None, ""))
            value = values[field.name]
            fits = not pattern or value is None or re.fullmatch(pattern, value) is not None
            require(fits, f"{section}.{field.name}", f"found {value!r}, expected {expected}")
        if values["wall_time"] is not None:
            seconds(values["wall_time"], f"{section}.wall_time")
        _check_extra(values.get("extra", ""), f"{section}.extra")
    low, high = _SIGNAL_SECONDS
    warning, limit = slurm["signal_time_seconds"], seconds(slurm["wall_time"], "slurm.wall_time")
    problem = f"found {warning}, expected {low} to {high} and less than slurm.wall_time ({limit} s)"
    require(low <= warning <= min(high, limit - 1), "slurm.signal_time_seconds", problem)
    for module in slurm["modules"]:
        named = re.fullmatch(r"[\w.+/@:-]+", module) is not None
        require(named, "slurm.modules", f"found {module!r}, expected names such as cuda/12.4")
    _check_env(slurm["env"])
    program = slurm["container"]["program"]
    known = program in ("apptainer", "singularity")
    require(known, "slurm.container.program", f"found {program!r}, expected apptainer or singularity")
    for bind in slurm["container"]["bind"]:
        shaped = re.fullmatch(r"[^:,\s]+(:[^:,\s]+){0,2}", bind) is not None
        require(shaped, "slurm.container.bind", f"found {bind!r}, expected source[:target[:options]]")


def _check_extra(extra: str, key: str) -> None:
    """Read the options as sbatch does: a long one may be cut short, and several short ones be one word."""
    try:
        words = shlex.split(extra)
    except ValueError as error:
        raise ConfigError(key, f"found {extra!r}: {error}") from None
    for word in words:
        require("\n" not in word and "\r" not in word, key, f"found {extra!r}, expected one line")
        # Anything else would be the script, with job.sh for its argument.
        option = re.match(r"-\w|--\w", word) is not None
        require(option, key, f"found {word!r}, expected options such as --exclusive, with values as in --licenses=name")
        for name in _names_of(word):
            ours = next((one for one in _NOT_EXTRA if one == name or (name[:2] == "--" and one.startswith(name))), None)
            short_for = f" (short for {ours})" if ours != name else ""
            decided = f"{name}{short_for} is set by the workflow, from a key of its own or because it depends on it"
            require(ours is None, key, decided)
            whole = name == "--comment" or not "--comment".startswith(name)
            require(whole, key, f"found {name}, expected --comment=TEXT in full: the workflow adds to it")


def _names_of(word: str) -> list[str]:
    """The options in a word: `-Op` has two."""
    if word.startswith("--"):
        return [word.partition("=")[0]]
    names = []
    for letter in word[1:]:
        names.append(f"-{letter}")
        if letter not in _FLAGS:  # the rest is its value
            break
    return names


def _check_env(env: Mapping[str, Any]) -> None:
    for name, value in env.items():
        key = f"slurm.env.{name}"
        named = re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is not None
        require(named, key, "expected the name of an environment variable: letters, digits and _")
        require(name not in _NOT_ENV and not name.startswith("SLURM_"), key, "is set by the workflow or by Slurm")
        plain = isinstance(value, str | int | float) and not isinstance(value, bool) and "\n" not in str(value)
        require(plain, key, f"found {value!r}, expected text of one line or a number; put it in quotes")


def seconds(wall_time: str, key: str = "wall_time") -> int:
    """`1-12:00:00`, `36:00:00`, `30:00` (minutes) as seconds."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", wall_time)
    if not match:
        hint = "; in YAML it needs quotes, or it is read as a number" if wall_time.isdigit() else ""
        raise ConfigError(key, f"found {wall_time!r}, expected HH:MM:SS or D-HH:MM:SS{hint}")
    days, first, second, third = match.groups()
    if days is None and third is None:  # Slurm reads two numbers as minutes and seconds
        total = int(first) * 60 + int(second)
    else:
        total = int(days or 0) * 86400 + int(first) * 3600 + int(second) * 60 + int(third or 0)
    if total < 60:
        raise ConfigError(key, f"found {wall_time!r}, which is {total} s; Slurm counts minutes")
    return total


def megabytes(mem: str) -> int:
    """`200G` as MB of 1024 KB; Slurm's plain number is MB already."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", mem)
    assert match
    return -(-int(match[1]) * {"K": 1, "": 1024, "M": 1024, "G": 1024**2, "T": 1024**3}[match[2]] // 1024)


def resources(view: dict[str, Any], kind: str, gpus_beside: int = 1) -> dict[str, Any]:
    """Resources of a rule's job.

    Args:
        view: the stage's flat configuration.
        kind: the rule.
        gpus_beside: GPUs of a job that is not of ranks.
    """
    slurm = view["slurm"]
    if STAGES[kind].on_gpu:
        topology = slurm_topology(view)
        alone = STAGES[kind].place != "ranks"
        gpus = min(gpus_beside, slurm["gpus_per_node"]) if alone else slurm["gpus_per_node"]
        share = gpus / slurm["gpus_per_node"] if gpus else 1
        shape = {
            "nodes": 1 if alone else topology.num_nodes,
            "tasks_per_node": 1 if alone else topology.devices_per_node,
            "gres": ":".join(filter(None, ("gpu", slurm["gpu_type"], str(gpus)))) if gpus else None,
            "cpus_per_task": cores(view),
        }
        values = slurm
        if STAGES[kind].resumes:
            values = slurm | {key: value for key, value in slurm["generate"].items() if value is not None}
    else:
        share = 1
        values = {**slurm["cpu"], "account": slurm["cpu"]["account"] or slurm["account"]}
        shape = {"nodes": 1, "tasks_per_node": 1, "gres": None, "cpus_per_task": values["cpus_per_task"]}
    all_memory = values["mem"] == "0"
    further = [f"--{name}={values[name]}" for name in ("reservation", "exclude") if values[name]]
    further += ["--mem=0"] if all_memory else []
    return {
        "slurm_partition": values["partition"],
        "slurm_account": values["account"],
        "qos": values["qos"],
        **shape,
        # 0 is not asked for: Snakemake knows no absent mem_mb.
        "mem_mb": math.ceil(megabytes(values["mem"]) * share) if values["mem"] and not all_memory else 0,
        "runtime": -(-seconds(values["wall_time"]) // 60),
        "constraint": values["constraint"],
        "slurm_extra": shlex.join([*further, *shlex.split(values["extra"])]) or None,
    }


def cores(view: dict[str, Any]) -> int:
    """Cores of one rank."""
    return int(view["slurm"]["cpus_per_task"] or view["slurm"]["cpus_per_gpu"])


def options(found: Mapping[str, Any], view: dict[str, Any], kind: str) -> list[str]:
    """`sbatch`'s options about where a job runs, one word each.

    Args:
        found: the job's resources, as `resources()` made them or a command line changed them.
        view: the stage's flat configuration.
        kind: the rule.
    """
    slurm, minutes = view["slurm"], int(found["runtime"])
    named = [
        ("partition", found.get("slurm_partition")),
        ("account", found.get("slurm_account")),
        ("qos", found.get("qos")),
        ("nodes", found["nodes"]),
        ("ntasks-per-node", found["tasks_per_node"]),
        ("gres", found.get("gres")),
        ("cpus-per-task", found["cpus_per_task"]),
        ("mem", f"{found['mem_mb']}M" if found.get("mem_mb") else None),
        ("time", f"{minutes // 60:02}:{minutes % 60:02}:00"),
        ("constraint", found.get("constraint")),
        # Without `B:` it reaches the ranks and not the batch script, with it the batch script, which runs the other stages.
        (
            "signal",
            f"{'B:' * STAGES[kind].resumes}USR1@{_warning(found, slurm)}" if STAGES[kind].stops_on_request else None,
        ),
    ]
    words = [f"--{name}={value}" for name, value in named if value]
    if slurm["requeue"] is not None:
        words.append("--requeue" if slurm["requeue"] else "--no-requeue")
    return words + shlex.split(found.get("slurm_extra") or "")


def _warning(found: Mapping[str, Any], slurm: dict[str, Any]) -> int:
    """Seconds before the time limit at which Slurm warns: at most half of it."""
    return int(min(slurm["signal_time_seconds"], int(found["runtime"]) * 30))


def describe(found: Mapping[str, Any], view: dict[str, Any], kind: str) -> str:
    """`2 nodes x 4 GPUs, 12:00:00`."""
    gpus = re.search(r"(\d+)$", found.get("gres") or "")
    nodes, minutes, noun = int(found["nodes"]), int(found["runtime"]), "GPU" if gpus else "core"
    devices = int(gpus[1]) if gpus else int(found["cpus_per_task"]) * int(found["tasks_per_node"])
    shape = f"{nodes} node{'s' * (nodes != 1)} x {devices} {noun}{'s' * (devices != 1)}"
    return f"{shape}, {minutes // 60:02}:{minutes % 60:02}:00"
