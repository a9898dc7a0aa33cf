"""One training stage as the checks see it: its view, its data's manifest, its devices, its model's shape."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from post_training.config import batch
from post_training.config.batch import BatchPlan, Topology
from post_training.config.deepspeed import deepspeed_config
from post_training.core import manifest
from post_training.core.devices import Device
from post_training.core.errors import ConfigError
from post_training.preflight.shape import ModelShape


@dataclass
class Subject:
    """What is known of one stage before it trains. Reads manifests and configurations, no data and no weights."""

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
    whole: bool = False
    """Whether it has been trained already."""
    rates: list[dict[str, Any]] = field(default_factory=list)
    """What earlier runs and probes have measured, newest first; see `speed.measured_rates`."""

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

    @cached_property
    def mix(self) -> manifest.Manifest:
        """The manifest of its mix."""
        return manifest.read(self.data)

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
    def zero_stage(self) -> int | None:
        """Stage of ZeRO; None without DeepSpeed."""
        if self.deepspeed is None:
            return None
        return int((self.deepspeed.get("zero_optimization") or {}).get("stage", 0))
