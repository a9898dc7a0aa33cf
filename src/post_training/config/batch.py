"""Devices, batch and length: the arithmetic of a run, refused early where it does not work out."""

import math
import os
from dataclasses import dataclass
from typing import Any

from post_training import methods
from post_training.core.devices import count_gpus
from post_training.core.errors import ConfigError, at_least, require

AUTO, PER_DEVICE = "auto", "per_device_train_batch_size"
LENGTHS = ("max_steps", "num_training_samples", "num_training_tokens", "num_train_epochs")


@dataclass(frozen=True)
class Topology:
    """Where ranks run. One rank a device; `devices_per_node` counts CPU ranks where there is no GPU."""

    num_nodes: int
    devices_per_node: int
    device: str
    """`GPU` or `CPU`."""

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.num_nodes * self.devices_per_node


@dataclass(frozen=True)
class BatchPlan:
    """The factors of one optimizer step."""

    topology: Topology
    per_device: int
    accumulation: int
    rows: int
    """Sequences, or pairs for preferences, of a step."""
    row_tokens: int | None
    """Tokens of a full sequence, known with packing."""
    unit: str = "sequence"
    automatic: bool = False
    """Whether the job will take more at a time, as its memory allows, with as much less accumulation."""

    def describe(self, steps: int | None, epochs: float | None = None) -> str:
        """One line: `2 nodes x 4 GPUs x 2 sequences x 6 accumulation = 96 sequences, 393,216 tokens a step; 1,204 steps`."""
        factors = f"{_devices(self.topology)} x {_count(self.per_device, self.unit)} x {self.accumulation} accumulation"
        if self.automatic:
            share = _count(self.per_device * self.accumulation, self.unit)
            factors = f"{_devices(self.topology)} x {share}, as many at a time as fit,"
        tokens = f", {self.rows * self.row_tokens:,} tokens" if self.row_tokens else ""
        length = _count(steps, "step") if steps is not None else f"{epochs:g} epochs"
        return f"{factors} = {_count(self.rows, self.unit)}{tokens} a step; {length}"


def local_topology(view: dict[str, Any]) -> Topology:
    """One process a GPU of this machine, or one on the CPU; `accelerate.num_processes` overrides the number.

    Raises ConfigError when that is more than there are GPUs.
    """
    gpus = 0 if view["accelerate"]["use_cpu"] else count_gpus()
    wanted, key = view["accelerate"]["num_processes"], "accelerate.num_processes"
    at_least(1, wanted, key)
    require(wanted is None or not gpus or wanted <= gpus, key, f"found {wanted}, but this machine shows {gpus} GPUs")
    return Topology(1, wanted or gpus or 1, "GPU" if gpus else "CPU")


def topology_from_environment() -> Topology:
    """Ranks and nodes as the launcher, srun or `accelerate launch` set them; one rank where none did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    return Topology(world // local, local, "GPU" if count_gpus() else "CPU")


def slurm_topology(view: dict[str, Any]) -> Topology:
    """The allocation that `slurm.*` asks for."""
    nodes, gpus, accelerate = view["slurm"]["num_nodes"], view["slurm"]["gpus_per_node"], view["accelerate"]
    if gpus:
        return Topology(nodes, gpus, "CPU" if accelerate["use_cpu"] else "GPU")
    return Topology(nodes, accelerate["num_processes"] or 1, "CPU")


def check_length(view: dict[str, Any], method: str) -> None:
    """Raise ConfigError unless there is exactly one length, in tokens only where a sequence has a known number of them."""
    training = view["training"]
    given = [key for key in LENGTHS if training[key] is not None]
    if len(given) != 1:
        found = " and ".join(f"{key}={training[key]}" for key in given) or "none"
        key, expected = given[-1] if given else "max_steps", f"exactly one of {', '.join(LENGTHS)}"
        raise ConfigError(f"training.{key}", f"found {found}; give {expected} and set the others to null")
    key = given[0]
    require(training[key] > 0, f"training.{key}", f"found {training[key]}, expected a number above 0")
    if key == "num_training_tokens" and not methods.packs(view):
        remedy = "set sft.packing=true or give another length" if method == "sft" else "give another length"
        raise ConfigError(f"training.{key}", f"found {training[key]}; works for SFT with packing only; {remedy}")
    per_device, key = training[PER_DEVICE], f"training.{PER_DEVICE}"
    if isinstance(per_device, str):
        require(per_device == AUTO, key, f"found {per_device!r}, expected a number or {AUTO}")
        decides = methods.micro_batch_decides(view)
        require(not decides, key, f"found {AUTO}, but these rows are compared within a micro-batch; give a number")
    else:
        at_least(1, per_device, key)
    at_least(1, training["effective_batch_size"], "training.effective_batch_size")


def batch_plan(view: dict[str, Any], method: str, topology: Topology) -> BatchPlan:
    """Derive gradient accumulation. Raises ConfigError with the nearest batch sizes that work."""
    training, module = view["training"], methods.load(method)
    wanted, automatic = training["effective_batch_size"], training[PER_DEVICE] == AUTO
    per_device = 1 if automatic else training[PER_DEVICE]
    unit = "pair" if module.ROWS == "preference" else "sequence"
    at_once = topology.world_size * per_device
    if wanted % at_once:
        below, above = wanted // at_once * at_once, (wanted // at_once + 1) * at_once
        nearest = f"{below} or {above}" if below else str(above)
        # Another way out: the largest micro-batch that divides, on the same devices.
        fitting = [n for n in range(per_device, 0, -1) if wanted % (topology.world_size * n) == 0]
        other = f", or training.per_device_train_batch_size={fitting[0]}" if fitting else ""
        divisor = f"{_devices(topology)} x {_count(per_device, unit)} = {at_once}"
        problem = f"{_count(wanted, unit)} do not divide over {divisor}; use {nearest}{other}"
        raise ConfigError("training.effective_batch_size", problem)
    row_tokens = view[method]["max_seq_length"] if methods.packs(view) else None
    return BatchPlan(topology, per_device, wanted // at_once, wanted, row_tokens, unit, automatic)


def steps(view: dict[str, Any], method: str, rows: int | None = None) -> int | None:
    """Optimizer steps of a run; None when they depend on the data and `rows` is not given."""
    training = view["training"]
    batch = training["effective_batch_size"]
    if training["max_steps"] is not None:
        return int(training["max_steps"])
    if training["num_training_samples"] is not None:
        return math.ceil(training["num_training_samples"] / batch)
    if training["num_training_tokens"] is not None:
        return math.ceil(training["num_training_tokens"] / (batch * view[method]["max_seq_length"]))
    # Epochs follow one another without a smaller batch between them: the next one's rows fill up the last step.
    return None if rows is None else math.ceil(rows * training["num_train_epochs"] / batch)


def _devices(topology: Topology) -> str:
    return f"{_count(topology.num_nodes, 'node')} x {_count(topology.devices_per_node, topology.device)}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
