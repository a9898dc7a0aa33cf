"""A task of the rule -> the trainings to look at."""

import functools

from post_training.config import batch, resolve
from post_training.core import devices
from post_training.core.task import Task
from post_training.models import folder as model_folder
from post_training.preflight import resources, speed
from post_training.preflight.shape import ModelShape
from post_training.preflight.subject import Subject


def subjects_of(task: Task) -> list[Subject]:
    """The trainings that are yet to be done, or all where none is: of each run first to last, and what runs share once."""
    base = resources.base_of(task.output)
    on_slurm = task.config["place"] == "slurm"
    shape, here, gres = functools.cache(ModelShape.of), functools.cache(devices.here), functools.cache(resources.gres)
    measurements = speed.measurements(base)

    found = []
    for told in task.runtime["trainings"]:
        name, view = told["stage"], resolve(told["pipeline"]).last
        topology = batch.slurm_topology(view) if on_slurm else batch.local_topology(view)
        if on_slurm and topology.device == "GPU":
            device = devices.on_slurm(view, gres(view["slurm"]["partition"]))
        else:
            device = here(topology.device)
        folder, trust = model_folder(task.inputs[f"{name} model"]), bool(view["model"]["trust_remote_code"])
        own = shape(folder, trust)
        reference = None
        if f"{name} reference_model" in task.inputs:
            reference = shape(model_folder(task.inputs[f"{name} reference_model"]), trust)
        elif holds_reference(view):
            reference = own
        run = base / told["run"]
        subject = Subject(name, view, task.inputs[f"{name} data"], folder, own, topology, device, run, reference)
        subject.runs = tuple(told["names"])
        subject.whole = (run / "manifest.json").is_file()
        subject.rates = speed.measured_rates(measurements, subject)
        found.append(subject)
    return [subject for subject in found if not subject.whole] or found


def holds_reference(view: dict[str, object]) -> bool:
    """Whether the reference model is in memory beside the trained one."""
    from post_training.methods.dpo.losses import needs_reference

    own = view[str(view["method"])]
    assert isinstance(own, dict)
    if view["method"] == "dpo":
        return own["reference"] == "online" and needs_reference(own)
    return view["method"] == "kto"
