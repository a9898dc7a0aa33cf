"""A task of the rule -> the stages to look at."""

from pathlib import Path

from post_training import batch
from post_training.config import resolve
from post_training.config.load import Pipeline
from post_training.model import folder as model_folder
from post_training.preflight import devices, resources, speed
from post_training.preflight.shape import ModelShape
from post_training.preflight.subject import Subject
from post_training.task import Task


def pipeline_of(task: Task) -> Pipeline:
    """The configuration as the job was told it."""
    return resolve(task.runtime["pipeline"])


def subjects_of(task: Task) -> list[Subject]:
    """Every stage of the pipeline, first to last."""
    base = resources.base_of(task.output)
    shapes: dict[Path, ModelShape] = {}

    def shape(folder: Path, trust: bool) -> ModelShape:
        if folder not in shapes:
            shapes[folder] = ModelShape.of(folder, trust)
        return shapes[folder]

    found = []
    for name, view in pipeline_of(task).views.items():
        topology = batch.slurm_topology(view) if task.config["place"] == "slurm" else batch.local_topology(view)
        on_slurm_gpu = task.config["place"] == "slurm" and topology.device == "GPU"
        device = devices.on_slurm(view, resources.gres(view)) if on_slurm_gpu else devices.here(topology.device)
        folder, trust = model_folder(task.inputs[f"{name} model"]), bool(view["model"]["trust_remote_code"])
        own = shape(folder, trust)
        reference = None
        if f"{name} reference_model" in task.inputs:
            reference = shape(model_folder(task.inputs[f"{name} reference_model"]), trust)
        elif holds_reference(view):
            reference = own
        run = base / task.runtime["runs"][name]
        subject = Subject(name, view, task.inputs[f"{name} data"], folder, own, topology, device, run, reference)
        subject.whole = (run / "manifest.json").is_file()
        subject.rates = speed.measured_rates(base, subject)
        found.append(subject)
    return found


def holds_reference(view: dict[str, object]) -> bool:
    """Whether the reference model is in memory beside the trained one."""
    from post_training.methods.dpo.losses import needs_reference

    own = view[str(view["method"])]
    assert isinstance(own, dict)
    if view["method"] == "dpo":
        return own["reference"] == "online" and needs_reference(own)
    return view["method"] == "kto"
