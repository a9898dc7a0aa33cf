"""The trainings that a preflight checks."""

import functools

from post_training import methods
from post_training.config import batch, resolve
from post_training.core import devices
from post_training.core.task import Task
from post_training.models import folder as model_folder
from post_training.preflight import resources
from post_training.preflight.measurements import measurements, same_work, work
from post_training.preflight.micro_batch import largest, with_number
from post_training.preflight.node import this_node
from post_training.preflight.shape import ModelShape
from post_training.preflight.subject import Subject, holds_reference


def subjects_of(task: Task) -> list[Subject]:
    """The trainings that are yet to be done, or all where none is: of each run first to last, and what runs share once.

    Raises:
        UserError: for a model that cannot be built, or a manifest that cannot be read.
    """
    base, on_slurm = resources.base_of(task.output), task.config["place"] == "slurm"
    shape, here = functools.cache(ModelShape.of), functools.cache(devices.here)
    gres_of, node = functools.cache(resources.gres), functools.cache(this_node)
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
        own = shape(folder, trust, methods.model_class(view["method"]))
        reference = own if holds_reference(view) else None
        if f"{name} reference_model" in task.inputs:
            reference = shape(model_folder(task.inputs[f"{name} reference_model"]), trust)
        run = base / training["run"]
        subject = Subject(name, view, task.inputs[f"{name} data"], folder, own, topology, device, run, reference)
        if view["training"][batch.PER_DEVICE] == batch.AUTO:
            subject = with_number(subject, largest(subject))
        subject.kernel = task.inputs.get(f"{name} kernel")
        subject.node = node() if topology.device == "GPU" and not on_slurm else None
        subject.runs, subject.complete = tuple(training["names"]), (run / "manifest.json").is_file()
        subject.rates = [entry for entry in measured if same_work(entry, work(subject))]
        found.append(subject)
    return [subject for subject in found if not subject.complete] or found
