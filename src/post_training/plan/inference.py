"""How many GPUs a job beside training asks for: as many as hold its model for inference."""

from functools import cache
from pathlib import Path
from typing import Any

from post_training.core.devices import USABLE, by_words, known_gpu
from post_training.core.errors import UserError
from post_training.models import folder as model_folder
from post_training.models.weights import gpus_needed, weight_bytes
from post_training.plan.stage import Stage

_KINDS = ("export", "evaluate", "lm_eval", "generate", "score_model")


def gpus(stage: Stage, base: Path, view: dict[str, Any]) -> int:
    """GPUs of a job, at most those of a node, on which it uses the CPU where they do not hold its model either.

    One where nothing is known: of the GPUs without `slurm.gpu_model` or `slurm.gpu_type`, of a model before its download,
    after which Snakemake asks again.
    """
    slurm = view["slurm"]
    name = slurm["gpu_model"] or by_words(slurm["gpu_type"] or "")
    if stage.kind not in _KINDS or name is None or slurm["gpus_per_node"] < 2:
        return 1
    size = model_bytes(stage, base)
    memory = known_gpu(name).memory_bytes
    return min(gpus_needed(size, int(memory * USABLE)), slurm["gpus_per_node"]) if size and memory else 1


def model_bytes(stage: Stage, base: Path) -> int | None:
    """Weights of the model that a stage holds; of one that is yet to be trained, by the model that its training starts from."""
    model = stage if stage.kind == "export" else stage.inputs.get("model") or stage.inputs.get("reward_model")
    dtype = "auto"
    while model is not None and model.kind == "export":
        train = model.inputs["train"]
        dtype = train.config["model"]["dtype"] if dtype == "auto" else dtype
        model = train.inputs["model"]
    if model is None:
        return None
    while model.kind == "merge_adapter" and not (base / model.manifest).is_file():
        model = model.inputs["base"]  # which is as large
    manifest = base / model.manifest
    try:
        if manifest.is_file():
            return _of_manifest(manifest, dtype)
        return _of_folder(Path(model.runtime["folder"]), dtype) if "folder" in model.runtime else None
    except (UserError, OSError):  # the job that reads it says why
        return None


@cache
def _of_manifest(manifest: Path, dtype: str) -> int:
    return weight_bytes(model_folder(manifest), dtype)


@cache
def _of_folder(folder: Path, dtype: str) -> int:
    return weight_bytes(folder, dtype)
