"""One training stage as the checks see it: its view, its data's manifest, its devices, its model's shape."""

import functools
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from post_training.config import batch, resolve
from post_training.config.batch import BatchPlan, Topology
from post_training.config.deepspeed import deepspeed_config
from post_training.core import devices, manifest
from post_training.core.devices import Device
from post_training.core.errors import ConfigError, DataError
from post_training.core.task import Task
from post_training.data.view import open_rows
from post_training.methods.dpo.losses import needs_reference
from post_training.models import folder as model_folder
from post_training.models.packing_probe import Packing, probe_folder
from post_training.preflight.measurements import Measurement, measurements, same_work, work
from post_training.preflight.shape import ModelShape


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
        return self.shape.adapter_parameters(lora["r"], lora["target_modules"])

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


def subjects_of(task: Task) -> list[Subject]:
    """The trainings that are yet to be done, or all where none is: of each run first to last, and what runs share once.

    Raises:
        UserError: for a model that cannot be built, or a manifest that cannot be read.
    """
    from post_training.preflight.resources import base_of, gres

    base, on_slurm = base_of(task.output), task.config["place"] == "slurm"
    shape, here, gres_of = functools.cache(ModelShape.of), functools.cache(devices.here), functools.cache(gres)
    measured = measurements(base)
    found = []
    for training in task.runtime["trainings"]:
        name, view = training["stage"], resolve(training["pipeline"]).last
        topology = batch.slurm_topology(view) if on_slurm else batch.local_topology(view)
        if on_slurm and topology.device == "GPU":
            device = devices.on_slurm(view, gres_of(view["slurm"]["partition"]))
        else:
            device = here(topology.device)
        folder, trust = model_folder(task.inputs[f"{name} model"]), bool(view["model"]["trust_remote_code"])
        own = shape(folder, trust)
        reference = own if holds_reference(view) else None
        if f"{name} reference_model" in task.inputs:
            reference = shape(model_folder(task.inputs[f"{name} reference_model"]), trust)
        run = base / training["run"]
        subject = Subject(name, view, task.inputs[f"{name} data"], folder, own, topology, device, run, reference)
        subject.runs, subject.complete = tuple(training["names"]), (run / "manifest.json").is_file()
        subject.rates = [entry for entry in measured if same_work(entry, work(subject))]
        found.append(subject)
    return [subject for subject in found if not subject.complete] or found


def holds_reference(view: dict[str, Any]) -> bool:
    """Whether the reference model is in memory beside the trained one."""
    if view["method"] == "dpo":
        return view["dpo"]["reference"] == "online" and needs_reference(view["dpo"])
    return bool(view["method"] == "kto")
