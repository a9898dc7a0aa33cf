"""One training stage as the checks see it: its view, its data's manifest, its devices, its model's shape."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from post_training.config import batch
from post_training.config.batch import BatchPlan, Topology
from post_training.config.deepspeed import deepspeed_config
from post_training.core import manifest
from post_training.core.devices import Device
from post_training.core.errors import ConfigError, DataError
from post_training.data.view import open_rows
from post_training.methods.dpo.losses import needs_reference
from post_training.models.packing_probe import Packing, probe_folder
from post_training.preflight.shape import ModelShape

if TYPE_CHECKING:
    from post_training.preflight.node import Node


@dataclass(frozen=True)
class Measurement:
    """The measured side of one `preflight.json`."""

    source: str
    """The run or probe."""
    tokens_per_second: float
    """Of all ranks."""
    world_size: int
    peak_memory_bytes: int | None = None
    predicted_memory_bytes: int | None = None
    work: Mapping[str, Any] = field(default_factory=dict)
    """Everything that was noted, with the keys of `work` and `batch_of`."""


@dataclass
class Subject:
    """What is known of one stage before it trains, from manifests and configurations: no data and no weights are read."""

    name: str
    view: dict[str, Any]
    data: Path
    """Manifest of its mix."""
    folder: Path
    """Model folder that the pipeline starts from; a later stage starts from its export, which has the same shape."""
    shape: ModelShape
    topology: Topology
    device: Device
    run: Path
    """The run directory, which need not exist."""
    reference: ModelShape | None = None
    """A model that is held beside the trained one."""
    runs: tuple[str, ...] = ()
    """Names of the runs that it is a part of."""
    complete: bool = False
    """Whether it has been trained already."""
    kernel: Path | None = None
    """Manifest of its attention kernel from the Hub."""
    node: "Node | None" = None
    """The machine that its ranks run on, where that is this one."""
    rates: list[Measurement] = field(default_factory=list)
    """Of the same work on the same kind of device, newest first."""

    @property
    def method(self) -> str:
        """`sft`, `dpo`, ..."""
        return str(self.view["method"])

    @property
    def own(self) -> dict[str, Any]:
        """The method's own keys."""
        return dict(self.view[self.method])

    @property
    def training(self) -> dict[str, Any]:
        """The section `training`."""
        return dict(self.view["training"])

    @property
    def trainable(self) -> int:
        """Parameters that have a gradient."""
        lora = self.view["model"]["lora"]
        if lora is None:
            return self.shape.parameters
        parts = self.shape.parts
        output = 0 if self.shape.has_head else self.shape.hidden  # trained whole beside adapters
        rows = len(lora["trainable_tokens"] or ()) * len(parts.with_rows()) * self.shape.hidden
        beside = output + rows + parts.full_parameters(lora)
        return beside + self.shape.adapter_parameters(lora["r"], lora["target_modules"])

    @cached_property
    def mix(self) -> manifest.Manifest:
        """The manifest of its mix."""
        return manifest.read(self.data)

    @cached_property
    def context(self) -> float:
        """Mean length of the document that a token is in, from the mix's index; its longest document where that is unreadable."""
        try:
            lengths = open_rows(self.data).lengths().astype(np.float64)
        except (DataError, KeyError):
            return float(self.mix.get("longest_document") or self.own["max_seq_length"])
        return float((lengths**2).sum() / lengths.sum())

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        found = batch.steps(self.view, self.method, self.mix["rows_out"])
        assert found is not None
        return found

    @cached_property
    def plan(self) -> BatchPlan:
        """Devices and batch. Raises ConfigError where the batch does not divide."""
        return batch.batch_plan(self.view, self.method, self.topology)

    @cached_property
    def attention(self) -> str:
        """Attention backend, `auto` resolved for the model's family."""
        wanted = str(self.view["model"]["attn_implementation"])
        return (self.packing.implementation or "sdpa") if wanted == "auto" else wanted

    @cached_property
    def packing(self) -> Packing:
        """What a probe says of the model's family; see models/packing_probe.py."""
        model = self.view["model"]
        return probe_folder(self.folder, str(model["attn_implementation"]), bool(model["trust_remote_code"]))

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step, or what comes closest where the batch does not divide."""
        try:
            return self.plan.accumulation
        except ConfigError:
            at_once = self.topology.world_size * self.training["per_device_train_batch_size"]
            return max(1, -(-self.training["effective_batch_size"] // at_once))

    @cached_property
    def deepspeed(self) -> dict[str, Any] | None:
        """The merged DeepSpeed configuration; None without, or where it is refused (which is a check of its own)."""
        try:
            return deepspeed_config(self.view)
        except ConfigError:
            return None

    @property
    def zero(self) -> dict[str, Any]:
        """DeepSpeed's section `zero_optimization`."""
        return dict((self.deepspeed or {}).get("zero_optimization") or {})

    @property
    def zero_stage(self) -> int | None:
        """Stage of ZeRO; None without DeepSpeed."""
        return None if self.deepspeed is None else int(self.zero.get("stage", 0))


def holds_reference(view: dict[str, Any]) -> bool:
    """Whether the reference model is in memory beside the trained one."""
    if view["method"] == "dpo":
        return view["dpo"]["reference"] == "online" and needs_reference(view["dpo"])
    return bool(view["method"] == "kto")
