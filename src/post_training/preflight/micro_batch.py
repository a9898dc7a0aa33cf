"""`training.per_device_train_batch_size: auto`: the largest micro-batch that fits, by the predicted memory alone.

Nothing is measured or tried, so that a job that starts again on devices of the same kind takes the same. The step does not depend on it
(data/deal.py), so it is in no fingerprint, and a job can decide it when its devices, its model and its rows are known.
"""

from dataclasses import replace
from typing import Any

from post_training import methods
from post_training.config import resolve
from post_training.config.batch import AUTO, PER_DEVICE, Topology
from post_training.core import devices
from post_training.core.devices import USABLE, Device
from post_training.core.errors import ConfigError
from post_training.core.format import GIB, gib
from post_training.core.task import Task
from post_training.models import folder as model_folder
from post_training.preflight import memory
from post_training.preflight.shape import ModelShape
from post_training.preflight.subject import Subject, holds_reference

_KEY = f"training.{PER_DEVICE}"
_SHARE = 0.9
"""Of what is usable: preflight warns above it."""


def decide(task: Task, topology: Topology) -> int | None:
    """Put the number into the task of a training, a reference or a probe, in memory; None where the configuration gives one.

    Raises ConfigError as `largest` does.
    """
    view = resolve(task.runtime["pipeline"]).last
    if view["training"][PER_DEVICE] != AUTO:
        return None
    subject = subject_of(task, view, topology)
    number = largest(subject)
    tree, stage = task.runtime["pipeline"], view["stage"]
    training = {**tree[stage]["training"], PER_DEVICE: number}
    task.runtime["pipeline"] = {**tree, stage: {**tree[stage], "training": training}}
    return number


def subject_of(task: Task, view: dict[str, Any], topology: Topology) -> Subject:
    """A training's task on the devices of this machine, as preflight would check it."""
    folder, trust = model_folder(task.inputs["model"]), bool(view["model"]["trust_remote_code"])
    shape = ModelShape.of(folder, trust, methods.model_class(view["method"]))
    reference = shape if holds_reference(view) else None
    if "reference_model" in task.inputs:
        reference = ModelShape.of(model_folder(task.inputs["reference_model"]), trust)
    named = view["slurm"]["gpu_model"] if task.runtime.get("slurm") and topology.device == "GPU" else None
    device = devices.known_gpu(named) if named else devices.here(topology.device)
    data = task.inputs["data"]
    return Subject(view["stage"], view, data, folder, shape, topology, device, task.directory, reference)


def largest(subject: Subject) -> int:
    """The largest power of two that divides a device's share of the step, and fits.

    Raises ConfigError where the device's memory is not known, or not one row fits.
    """
    limit = memory_bytes(subject.device)
    if limit is None:
        problem = f"found {AUTO}, but the memory of the GPUs is not known; name them with slurm.gpu_model"
        raise ConfigError(_KEY, problem)
    share, number = subject.plan.accumulation, 1
    sizes = []
    while share % number == 0:
        sizes.append(number)
        number *= 2
    for size in reversed(sizes):
        tried = with_number(subject, size)
        if memory.needed_bytes(tried, memory.predict(tried).peak) <= _SHARE * USABLE * limit:
            return size
    needed = memory.predict(with_number(subject, 1)).describe()
    raise ConfigError(
        _KEY,
        f"found {AUTO}, but not one row of the longest fits into {gib(limit)} of the {subject.device.name}: it needs {needed}; lower "
        f"{subject.method}.max_seq_length, train adapters (model.lora), or use deepspeed.config_path=zero3 on more GPUs",
    )


def with_number(subject: Subject, number: int) -> Subject:
    """The same training with so many rows at a time."""
    training = {**subject.view["training"], PER_DEVICE: number}
    changed = replace(subject, view={**subject.view, "training": training})
    known = ("mix", "context", "attention", "packing", "deepspeed")  # which do not depend on it
    changed.__dict__.update({name: subject.__dict__[name] for name in known if name in subject.__dict__})
    return changed


def memory_bytes(device: Device) -> int | None:
    """What is printed on a GPU that is known by name, as `slurm.gpu_model` has it; drivers report a little less."""
    if device.memory_bytes is None or device.name == "CPU":
        return device.memory_bytes
    name = devices.by_words(f"{device.name} {round(device.memory_bytes / GIB)}")
    return devices.known_gpu(name).memory_bytes if name else device.memory_bytes
