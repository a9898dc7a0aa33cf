"""Devices, batch and length: the arithmetic of a run, refused early where it does not work out. Light."""

import math
from dataclasses import dataclass
from typing import Any

from post_training import methods
from post_training.core.devices import count_gpus
from post_training.core.errors import ConfigError

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
    """What one optimizer step is made of."""

    topology: Topology
    per_device: int
    accumulation: int
    rows: int
    row_tokens: int | None
    """Tokens of a full row, known with packing."""

    def describe(self, steps: int | None, epochs: float | None = None) -> str:
        """One line: `2 nodes x 4 GPUs x 2 rows x 6 accumulation = 96 rows, 393,216 tokens a step; 1,204 steps`."""
        topology = self.topology
        factors = [
            _count(topology.num_nodes, "node"),
            _count(topology.devices_per_node, topology.device),
            _count(self.per_device, "row"),
            f"{self.accumulation} accumulation",
        ]
        size = f"{' x '.join(factors)} = {_count(self.rows, 'row')}"
        tokens = f", {self.rows * self.row_tokens:,} tokens" if self.row_tokens else ""
        length = _count(steps, "step") if steps is not None else f"{epochs:g} epochs"
        return f"{size}{tokens} a step; {length}"


def local_topology(view: dict[str, Any]) -> Topology:
    """One process a GPU of this machine, or one on the CPU; `accelerate.num_processes` overrides the number."""
    gpus = 0 if view["accelerate"]["use_cpu"] else count_gpus()
    wanted = view["accelerate"]["num_processes"]
    if wanted is not None and wanted < 1:
        raise ConfigError("accelerate.num_processes", f"found {wanted}, expected 1 or more")
    if wanted is not None and gpus and wanted > gpus:
        raise ConfigError("accelerate.num_processes", f"found {wanted}, but this machine shows {gpus} GPUs")
    return Topology(1, wanted or gpus or 1, "GPU" if gpus else "CPU")


def slurm_topology(view: dict[str, Any]) -> Topology:
    """The allocation that `slurm.*` asks for."""
    nodes, gpus, accelerate = view["slurm"]["num_nodes"], view["slurm"]["gpus_per_node"], view["accelerate"]
    if gpus:
        return Topology(nodes, gpus, "CPU" if accelerate["use_cpu"] else "GPU")
    return Topology(nodes, accelerate["num_processes"] or 1, "CPU")


def check_length(view: dict[str, Any], method: str) -> None:
    """Exactly one length, and tokens only where a row has a known number of them."""
    training = view["training"]
    given = [key for key in LENGTHS if training[key] is not None]
    if len(given) != 1:
        found = " and ".join(f"{key}={training[key]}" for key in given) or "none"
        raise ConfigError(
            f"training.{given[-1] if given else 'max_steps'}",
            f"found {found}; give exactly one of {', '.join(LENGTHS)} and set the others to null",
        )
    key = given[0]
    if not training[key] > 0:
        raise ConfigError(f"training.{key}", f"found {training[key]}, expected a number above 0")
    if key == "num_training_tokens" and not methods.load(method).packs(view[method]):
        remedy = "set sft.packing=true or give another length" if method == "sft" else "give another length"
        raise ConfigError(
            "training.num_training_tokens", f"found {training[key]}; works for SFT with packing only; {remedy}"
        )
    for name in ("effective_batch_size", "per_device_train_batch_size"):
        if training[name] < 1:
            raise ConfigError(f"training.{name}", f"found {training[name]}, expected 1 or more")
    if not 0 <= training["warmup_ratio"] < 1:
        raise ConfigError(
            "training.warmup_ratio", f"found {training['warmup_ratio']}, expected a share from 0 to below 1"
        )


def batch_plan(view: dict[str, Any], method: str, topology: Topology) -> BatchPlan:
    """Derive gradient accumulation, or refuse with the nearest batch sizes that work."""
    training = view["training"]
    wanted, per_device = training["effective_batch_size"], training["per_device_train_batch_size"]
    at_once = topology.world_size * per_device
    if wanted % at_once:
        below, above = wanted // at_once * at_once, (wanted // at_once + 1) * at_once
        nearest = f"{below} or {above}" if below else str(above)
        # Another way out: the largest micro-batch that divides, on the same devices.
        fitting = [n for n in range(per_device, 0, -1) if wanted % (topology.world_size * n) == 0]
        other = f", or training.per_device_train_batch_size={fitting[0]}" if fitting else ""
        raise ConfigError(
            "training.effective_batch_size",
            f"{wanted} rows do not divide over {_count(topology.num_nodes, 'node')} x "
            f"{_count(topology.devices_per_node, topology.device)} x {_count(per_device, 'row')} = {at_once}; "
            f"use {nearest}{other}",
        )
    row_tokens = view[method]["max_seq_length"] if methods.load(method).packs(view[method]) else None
    return BatchPlan(topology, per_device, wanted // at_once, wanted, row_tokens)


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
    if rows is None:
        return None
    # Epochs follow one another without a smaller batch between them, and the next one's rows fill up the last step.
    return math.ceil(rows * training["num_train_epochs"] / batch)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
